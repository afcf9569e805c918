/* How ranks find each other: what started this process, and the exchange of NCCL's id. */
#ifndef LOOM_COMM_RENDEZVOUS_H
#define LOOM_COMM_RENDEZVOUS_H

#include "gptloom/error.h"

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The file into which loom_comm_abort() writes its line instead of stderr, where train/launch.c started us. */
#define LOOM_LAST_LINE "LOOM_LAST_LINE"
/* loom_comm_open() writes this there: from then on the rank can be asked to save and end. So much is read of it. */
#define LOOM_RANK_READY "ready\n"
enum { LOOM_LAST_LINE_BYTES = 1 << 16 };
/* A variable of all that train/launch.c starts, by which it finds what is left of them. */
#define LOOM_RANKS_OF "LOOM_RANKS_OF"

/* mpirun, or srun with PMIx; torchrun, or what sets its variables, with more than one rank. */
bool loom_started_by_mpi(void);
bool loom_started_by_torchrun(void);

/* Whether nothing in the environment speaks of other ranks; else the error says what does. */
bool loom_is_alone(loom_error *error);

/* Waits two seconds, in which a rank that knows more about a failure can print its error and end this one: by SIGTERM,
 * which may have been caught, to save first, and no longer is. */
void loom_error_grace_period(void);

/* A rank as torchrun's variables say it. Errors name the variable that is missing or makes no sense. */
typedef struct loom_rank_variables {
    int rank, size, local_rank, local_size;
} loom_rank_variables;
bool loom_read_rank_variables(loom_rank_variables *variables, loom_error *error);

/* MASTER_PORT. */
bool loom_read_master_port(int *port, loom_error *error);

/* Gives rank 0's `bytes` (256 at most) to all ranks, by way of TCP to MASTER_ADDR at MASTER_PORT (the port after it
 * where torchrun's agent has that one), or of a file that all ranks see. Both end when all ranks have it, on rank 0
 * too, or at the time limit, with the ranks that did not come.
 *
 * By TCP, where LOOM_SECRET is set, both sides prove that they know it. Rank 0 then has a `rendezvous` (else NULL),
 * which goes on refusing those that come too late, or twice, when it is given a turn; until it is closed. */
typedef struct loom_rendezvous loom_rendezvous;
bool loom_share_by_tcp(void *data, size_t bytes, const loom_rank_variables *variables, double timeout,
                       loom_rendezvous **rendezvous, loom_error *error);
void loom_rendezvous_turn(loom_rendezvous *rendezvous, int milliseconds);
void loom_rendezvous_close(loom_rendezvous *rendezvous);

/* "; refused ADDRESS: why", of the last rank that was, or "". And whether rank 0 listens at all addresses of its
 * machine, as MASTER_ADDR is none of them. */
const char *loom_rendezvous_refused(const loom_rendezvous *rendezvous);
bool loom_rendezvous_is_open_to_all(const loom_rendezvous *rendezvous);

bool loom_share_by_file(const char *path, void *data, size_t bytes, int rank, int size, double timeout,
                        loom_error *error);

#ifdef __cplusplus
}
#endif
#endif
