/* Between the program and libgptloom_mpi.so, which is compiled with mpicc and loaded when it is asked for: MPI's
 * handles are macros over an implementation's own symbols, so that libmpi itself cannot be a table of functions found
 * by name. The library has no symbols of gptloom's: it can be loaded by a program that exports none.
 *
 * All functions are called by one thread, and one operation is under way at a time. They return false with a reason. */
#ifndef LOOM_COMM_MPI_TABLE_H
#define LOOM_COMM_MPI_TABLE_H

#include "comm/backend.h"

enum { LOOM_MPI_TABLE_VERSION = 3, LOOM_MPI_WHY = 512 };

typedef struct loom_mpi_world {
    int rank, size, local_rank, local_size;
    char library[64]; /* "Open MPI 4.1.4" */
} loom_mpi_world;

/* What ranks send each other beside operations: to find out which of them an operation waits for, and that a rank has
 * said why all end. */
typedef enum loom_mpi_note_kind {
    LOOM_MPI_QUESTION,
    LOOM_MPI_ANSWER,
    LOOM_MPI_END,
    LOOM_MPI_NOTE_KINDS
} loom_mpi_note_kind;

typedef struct loom_mpi_note {
    int64_t kind;
    int64_t number;    /* of the operation that the rank is in, or the last it was in */
    int64_t published; /* the same of another back end, whose control communicator this is; 0: none */
    int64_t step;
} loom_mpi_note;

typedef struct loom_mpi_table {
    int version;
    bool (*open)(loom_mpi_world *world, char why[LOOM_MPI_WHY]);
    /* Begins an operation on host memory, all of whose counts are below 2^31 and which is no reduce-scatter; `test`
     * moves it on, and says whether it has ended. */
    bool (*start)(const loom_comm_operation *operation, char why[LOOM_MPI_WHY]);
    bool (*test)(bool *ended, char why[LOOM_MPI_WHY]);
    /* Sends a note, which is dropped if that rank has not taken the last one of its kind; and takes one, if there is
     * one: *from is -1 else. */
    bool (*send_note)(const loom_mpi_note *note, int to, char why[LOOM_MPI_WHY]);
    bool (*take_note)(loom_mpi_note *note, int *from, char why[LOOM_MPI_WHY]);
    /* Ends all ranks; does not return if MPI can help it. */
    void (*abort)(int status);
    void (*close)(void);
} loom_mpi_table;

/* The one symbol of the library. */
#define LOOM_MPI_TABLE_SYMBOL "loom_mpi_get_table"
typedef const loom_mpi_table *(*loom_mpi_get_table_function)(void);

#endif
