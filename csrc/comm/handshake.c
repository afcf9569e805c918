#include "comm/handshake.h"

#include "base/check.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const char magic[8] = {'g', 'p', 't', 'l', 'o', 'o', 'm', '2'};

enum { HELLO = 1, CHALLENGE, PROOF, PAYLOAD, RECEIVED, REFUSAL };
enum { SIZE_DIFFERS = 1, HAS_COME, LACKS_SECRET, HAS_SECRET, WRONG_SECRET, REASONS };

typedef loom_handshake_head head;
typedef loom_handshake_opening opening;

typedef struct coded { /* PROOF, RECEIVED */
    head head;
    unsigned char code[LOOM_SECRET_CODE];
} coded;

typedef struct payload {
    head head;
    unsigned char code[LOOM_SECRET_CODE];
    unsigned char bytes[LOOM_HANDSHAKE_PAYLOAD];
} payload;

typedef struct refusal {
    head head;
    uint32_t reason;
} refusal;

_Static_assert(sizeof(opening) == 64 && sizeof(coded) == 56 && sizeof(refusal) == 28, "messages have no holes");
_Static_assert(sizeof(payload) == LOOM_HANDSHAKE_MESSAGE, "the largest message fits");

static size_t size_of(uint32_t type, size_t payload_bytes) {
    switch (type) {
    case HELLO:
    case CHALLENGE: return sizeof(opening);
    case PROOF:
    case RECEIVED: return sizeof(coded);
    case PAYLOAD: return sizeof(payload) - LOOM_HANDSHAKE_PAYLOAD + payload_bytes;
    case REFUSAL: return sizeof(refusal);
    }
    return 0;
}

static head head_of(const loom_handshake *h, uint32_t type) {
    head made = {.type = type,
                 .bytes = (uint32_t)size_of(type, h->party->bytes),
                 .rank = h->party->rank,
                 .size = h->party->size};
    memcpy(made.magic, magic, sizeof magic);
    return made;
}

static void answer(loom_handshake *h, const void *message, size_t bytes) {
    memcpy(h->answer, message, bytes);
    h->answer_bytes = bytes;
}

static void answer_opening(loom_handshake *h, opening *o, uint32_t type) {
    o->head = head_of(h, type);
    o->has_secret = h->party->secret.key != NULL;
    answer(h, o, sizeof *o);
}

/* What a code is of: nothing that was said can be used for another message, or over another connection. */
typedef struct transcript {
    uint32_t type, zero;
    opening hello, challenge;
    unsigned char payload[LOOM_HANDSHAKE_PAYLOAD];
} transcript;

static transcript transcript_of(const loom_handshake *h, uint32_t type, const void *bytes) {
    transcript t = {.type = type, .hello = h->hello, .challenge = h->challenge};
    if (type != PROOF) memcpy(t.payload, bytes, h->party->bytes);
    return t;
}

static bool sign(const loom_handshake *h, uint32_t type, const void *bytes, unsigned char *code) {
    const transcript t = transcript_of(h, type, bytes);
    return loom_secret_sign(&h->party->secret, &t, sizeof t, code);
}

static bool holds(const loom_handshake *h, uint32_t type, const void *bytes, const unsigned char *code) {
    const transcript t = transcript_of(h, type, bytes);
    return loom_secret_holds(&h->party->secret, &t, sizeof t, code);
}

static loom_handshake_result refuse(loom_handshake *h, const char *format, ...) __attribute__((format(printf, 2, 3)));
static loom_handshake_result refuse(loom_handshake *h, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(h->why, sizeof h->why, format, arguments);
    va_end(arguments);
    return LOOM_HANDSHAKE_REFUSED;
}

/* ------------------------------------------------------------------------------------------------------ rank 0's side */

static loom_handshake_result send_away(loom_handshake *h, uint32_t reason) {
    const refusal r = {head_of(h, REFUSAL), reason};
    const int rank = h->hello.head.rank;
    answer(h, &r, sizeof r);
    switch (reason) {
    case SIZE_DIFFERS: return refuse(h, "it says that it is rank %d of %d", rank, (int)h->hello.head.size);
    case HAS_COME: return refuse(h, "rank %d has come already", rank);
    case LACKS_SECRET: return refuse(h, "rank %d has no LOOM_SECRET, and rank 0 has one", rank);
    case HAS_SECRET: return refuse(h, "rank %d has a LOOM_SECRET, and rank 0 has none", rank);
    default: return refuse(h, "rank %d has another LOOM_SECRET", rank);
    }
}

static loom_handshake_result take_hello(loom_handshake *h) {
    const loom_handshake_party *p = h->party;
    opening o;
    memcpy(&o, h->message, sizeof o);
    if (o.has_secret > 1 || o.zero || o.head.rank < 0 || o.head.size < 1 || o.head.rank >= o.head.size)
        return LOOM_HANDSHAKE_REFUSED;
    h->hello = o;
    if (o.head.size != p->size) return send_away(h, SIZE_DIFFERS);
    h->peer = o.head.rank;
    if (p->has_come[h->peer]) return send_away(h, HAS_COME);
    if (o.has_secret != (p->secret.key != NULL)) return send_away(h, o.has_secret ? HAS_SECRET : LACKS_SECRET);
    answer_opening(h, &h->challenge, CHALLENGE);
    h->awaited = PROOF;
    return LOOM_HANDSHAKE_GOES_ON;
}

static loom_handshake_result take_proof(loom_handshake *h) {
    coded proof;
    payload out = {.head = head_of(h, PAYLOAD)};
    memcpy(&proof, h->message, sizeof proof);
    if (!holds(h, PROOF, NULL, proof.code)) return send_away(h, WRONG_SECRET);
    if (h->party->has_come[h->peer]) return send_away(h, HAS_COME);
    memcpy(out.bytes, h->party->payload, h->party->bytes);
    if (!sign(h, PAYLOAD, out.bytes, out.code)) return refuse(h, "libcrypto cannot sign");
    answer(h, &out, out.head.bytes);
    h->awaited = RECEIVED;
    return LOOM_HANDSHAKE_GOES_ON;
}

static loom_handshake_result take_received(loom_handshake *h) {
    coded received;
    memcpy(&received, h->message, sizeof received);
    if (!holds(h, RECEIVED, h->party->payload, received.code)) return send_away(h, WRONG_SECRET);
    if (h->party->has_come[h->peer]) return send_away(h, HAS_COME);
    return LOOM_HANDSHAKE_DONE;
}

/* ------------------------------------------------------------------------------------------------- another rank's side */

static loom_handshake_result take_challenge(loom_handshake *h) {
    opening o;
    coded proof = {.head = head_of(h, PROOF)};
    memcpy(&o, h->message, sizeof o);
    if (o.zero || o.has_secret != (h->party->secret.key != NULL))
        return refuse(h, "what listens there does not say whether it has a LOOM_SECRET as rank 0 would");
    h->challenge = o;
    if (!sign(h, PROOF, NULL, proof.code)) return refuse(h, "libcrypto cannot sign");
    answer(h, &proof, sizeof proof);
    h->awaited = PAYLOAD;
    return LOOM_HANDSHAKE_GOES_ON;
}

static loom_handshake_result take_payload(loom_handshake *h) {
    payload p = {0};
    coded received = {.head = head_of(h, RECEIVED)};
    memcpy(&p, h->message, h->bytes);
    if (!holds(h, PAYLOAD, p.bytes, p.code)) return refuse(h, "what listens there does not know LOOM_SECRET");
    if (!sign(h, RECEIVED, p.bytes, received.code)) return refuse(h, "libcrypto cannot sign");
    memcpy(h->party->payload, p.bytes, h->party->bytes);
    answer(h, &received, sizeof received);
    return LOOM_HANDSHAKE_DONE;
}

static loom_handshake_result take_refusal(loom_handshake *h) {
    static const char *const reasons[REASONS] = {
        [SIZE_DIFFERS] = "it has another number of ranks: WORLD_SIZE differs, or another training uses this port",
        [HAS_COME] =
            "this rank has come already: another process has the same RANK, or another training uses this port",
        [LACKS_SECRET] = "LOOM_SECRET is not set here, and is set there",
        [HAS_SECRET] = "LOOM_SECRET is set here, and is not set there",
        [WRONG_SECRET] = "LOOM_SECRET is another one there",
    };
    refusal r;
    memcpy(&r, h->message, sizeof r);
    if (r.reason < 1 || r.reason >= REASONS) return refuse(h, "what listens there is not rank 0");
    h->was_refused = true;
    return refuse(h, "%s", reasons[r.reason]);
}

/* ------------------------------------------------------------------------------------------------------------ messages */

/* Whether a head is the awaited one. Rank 0 is at work for any rank, and the other ranks for rank 0 of as many. */
static bool fits(const loom_handshake *h, const head *got) {
    if (memcmp(got->magic, magic, sizeof magic) != 0 || got->bytes != size_of(got->type, h->party->bytes)) return false;
    const bool refused = h->party->rank > 0 && got->type == REFUSAL;
    if (got->type != h->awaited && !refused) return false;
    if (h->party->rank > 0) return got->rank == 0 && (got->size == h->party->size || (refused && got->size > 0));
    return h->peer < 0 || (got->rank == h->peer && got->size == h->party->size);
}

static loom_handshake_result take_message(loom_handshake *h, uint32_t type) {
    switch (type) {
    case HELLO: return take_hello(h);
    case CHALLENGE: return take_challenge(h);
    case PROOF: return take_proof(h);
    case PAYLOAD: return take_payload(h);
    case RECEIVED: return take_received(h);
    default: return take_refusal(h);
    }
}

void loom_handshake_begin(loom_handshake *h, const loom_handshake_party *party,
                          const unsigned char nonce[LOOM_HANDSHAKE_NONCE]) {
    LOOM_CHECK(party->bytes <= LOOM_HANDSHAKE_PAYLOAD);
    *h = (loom_handshake){.party = party, .awaited = party->rank == 0 ? HELLO : CHALLENGE, .peer = -1};
    memcpy(party->rank == 0 ? h->challenge.nonce : h->hello.nonce, nonce, LOOM_HANDSHAKE_NONCE);
    if (party->rank > 0) answer_opening(h, &h->hello, HELLO);
}

loom_handshake_result loom_handshake_take(loom_handshake *h, const void *bytes, size_t count) {
    const unsigned char *from = bytes;
    h->answer_bytes = 0;
    for (size_t i = 0; i < count; i++) {
        head got;
        const bool stranger = h->bytes < sizeof magic && from[i] != (unsigned char)magic[h->bytes];
        h->message[h->bytes++] = from[i];
        if (h->bytes < sizeof got && !stranger) continue;
        memcpy(&got, h->message, sizeof got);
        if (stranger || (h->bytes == sizeof got && !fits(h, &got)))
            return h->party->rank == 0
                       ? LOOM_HANDSHAKE_REFUSED
                       : refuse(h, "what listens there is not rank 0 of these %d ranks", h->party->size);
        if (h->bytes < got.bytes) continue;
        loom_handshake_result result = take_message(h, got.type);
        h->bytes = 0;
        if (result == LOOM_HANDSHAKE_REFUSED || i + 1 == count) return result;
        h->answer_bytes = 0;
        return h->party->rank == 0 ? LOOM_HANDSHAKE_REFUSED : refuse(h, "what listens there says too much");
    }
    return LOOM_HANDSHAKE_GOES_ON;
}
