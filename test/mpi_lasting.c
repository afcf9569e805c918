/* libgptloom_mpi.so as it is, but that MPI lives on when a communicator is closed: MPI can be started once in a process,
 * and train_rank trains many times. Everything else is passed on. */
#include "comm/mpi_table.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const loom_mpi_table *loom_mpi_get_table(void);
void mpi_lasting_end(void);

static const loom_mpi_table *whole;

static void nothing(void) {
}

const loom_mpi_table *loom_mpi_get_table(void) {
    static loom_mpi_table table;
    const char *path = getenv("LOOM_MPI");
    void *library = path ? dlopen(path, RTLD_NOW | RTLD_GLOBAL) : NULL;
    void *const address = library ? dlsym(library, LOOM_MPI_TABLE_SYMBOL) : NULL;
    loom_mpi_get_table_function get;
    if (!address) {
        fprintf(stderr, "mpi_lasting: %s is no library of gptloom's\n", path ? path : "LOOM_MPI");
        return NULL;
    }
    memcpy(&get, &address, sizeof get);
    whole = get();
    table = *whole;
    table.close = nothing;
    return &table;
}

/* For the process's end. */
void mpi_lasting_end(void) {
    if (whole) whole->close();
}
