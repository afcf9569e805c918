/* What rank 0 and another rank say to each other over one connection, as bytes in memory, without sockets: whatever has
 * connected can send anything.
 *
 *     HELLO      to rank 0    who it is, how many ranks there are, whether it has a secret, and a nonce
 *     CHALLENGE  from rank 0  the same of rank 0
 *     PROOF      to rank 0    HMAC(secret, PROOF, HELLO, CHALLENGE)
 *     PAYLOAD    from rank 0  HMAC(secret, PAYLOAD, HELLO, CHALLENGE, the bytes), and the bytes
 *     RECEIVED   to rank 0    HMAC(secret, RECEIVED, HELLO, CHALLENGE, the bytes)
 *
 * or REFUSAL, from rank 0, with a reason. Where there is no secret, codes are zeros. A message is checked as a whole,
 * to its last byte, and is followed by nothing before it is answered. */
#ifndef LOOM_COMM_HANDSHAKE_H
#define LOOM_COMM_HANDSHAKE_H

#include "comm/secret.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    LOOM_HANDSHAKE_NONCE = 32,
    LOOM_HANDSHAKE_PAYLOAD = 256, /* bytes of a payload, at most */
    LOOM_HANDSHAKE_MESSAGE = 24 + LOOM_SECRET_CODE + LOOM_HANDSHAKE_PAYLOAD
};

/* What one side is, for all of its connections. */
typedef struct loom_handshake_party {
    int rank, size;
    loom_secret secret;
    void *payload; /* rank 0's is given away, another rank's is filled in at the end */
    size_t bytes;
    const bool *has_come; /* rank 0's (size): ranks that have it already */
} loom_handshake_party;

/* As they are sent; in the machine's own byte order, as everything between ranks is. */
typedef struct loom_handshake_head {
    char magic[8];
    uint32_t type, bytes; /* of the whole message */
    int32_t rank, size;   /* the sender's */
} loom_handshake_head;

typedef struct loom_handshake_opening { /* HELLO, CHALLENGE */
    loom_handshake_head head;
    uint32_t has_secret, zero;
    unsigned char nonce[LOOM_HANDSHAKE_NONCE];
} loom_handshake_opening;

typedef enum loom_handshake_result {
    LOOM_HANDSHAKE_GOES_ON, /* `answer` is to be sent, if there is any, and more is awaited */
    LOOM_HANDSHAKE_DONE,    /* `answer` is to be sent, if there is any, and that is all */
    LOOM_HANDSHAKE_REFUSED  /* the same; `why` says why, if the other side is a rank */
} loom_handshake_result;

/* One connection. */
typedef struct loom_handshake {
    const loom_handshake_party *party;
    uint32_t awaited; /* the type of the next message */
    int peer;         /* the other side's rank, as it says; -1 before it has said so */
    unsigned char message[LOOM_HANDSHAKE_MESSAGE], answer[LOOM_HANDSHAKE_MESSAGE];
    size_t bytes, answer_bytes;
    loom_handshake_opening hello, challenge;
    bool was_refused; /* rank 0 has refused this one, in a message */
    char why[160];
} loom_handshake;

/* Begins one on either side, rank 0 being the side that awaits HELLO; another rank's answer is HELLO at once. The nonce
 * is random, and used once. */
void loom_handshake_begin(loom_handshake *handshake, const loom_handshake_party *party,
                          const unsigned char nonce[LOOM_HANDSHAKE_NONCE]);

/* Takes bytes that have come, in any pieces. The answer is new, or has no bytes. After anything but GOES_ON it is over.
 * */
loom_handshake_result loom_handshake_take(loom_handshake *handshake, const void *bytes, size_t count);

#ifdef __cplusplus
}
#endif
#endif
