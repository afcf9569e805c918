/* What a model does, as text: each op with its arguments, each copy, wait, operation between ranks and call of a hook,
 * in a line of its own, of a device on which nothing runs and of memory that is not there.
 *
 * A value is named by who wrote it and not by where it lies: `x:f(8,16)=a1:9.out` is read from what op 9 of section a1
 * (the first micro-batch of step 1) wrote as its `out`, from that output's first byte on (else "+BYTES"). What was
 * there before the first step has a name of its own: "h.0.ln_1.weight", "grad.wte.weight", "batch.tokens". Where
 * several wrote what is read, they are listed with the bytes of each: "{b1:40.dq*512|b1:40.dk+64*512}". Of what is
 * written, ">NAME" says where it lies only where that outlives the step (">" alone: where it was read from). A copy
 * hands names on: what comes back from the host is what left. So memory may be laid out in any other way, and the text
 * is the same. */
#ifndef LOOM_TEST_TRACE_H
#define LOOM_TEST_TRACE_H

#include "support.h"

#include "data/feeder.h"
#include "parallel/data_parallel.h"

extern "C" {
#include "comm/backend.h"
#include "model/gpt.h"
#include "ops/arguments.h"
}

#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <map>

#include <sys/mman.h>

namespace trace {

using namespace support;

/* ----------------------------------------------------------------------------------------------------- who wrote what */

/* Part of what is read: bytes of one writer's value, which would begin `delta` bytes before the view that is read. */
struct Source {
    int writer;
    int64_t delta;
    size_t bytes;
};

/* Rows of bytes, in up to three dimensions beyond them. */
struct Rows {
    uintptr_t first;
    size_t width;
    struct Dimension {
        int64_t count, stride; /* in bytes */
    };
    std::vector<Dimension> outer; /* innermost first */

    Rows(uintptr_t begin, size_t bytes) : first(begin), width(bytes) {
    }
    explicit Rows(const loom_view &view) : first((uintptr_t)view.data) {
        const int64_t size = (int64_t)loom_dtype_size(view.dtype);
        width = (size_t)(view.shape[3] * size);
        for (int i = 2; i >= 0; i--) {
            const int64_t count = view.shape[i], stride = view.stride[i] * size;
            if (count == 1) continue;
            if (outer.empty() && stride == (int64_t)width)
                width *= (size_t)count;
            else if (!outer.empty() && stride == outer.back().count * outer.back().stride)
                outer.back().count *= count;
            else
                outer.push_back({count, stride});
        }
    }
    template <typename See> void each(See see) const {
        each(see, first, outer.size());
    }

  private:
    template <typename See> void each(See see, uintptr_t at, size_t dimensions) const {
        if (dimensions == 0) return see(at);
        const Dimension &d = outer[dimensions - 1];
        for (int64_t i = 0; i < d.count; i++) each(see, at + (uintptr_t)(i * d.stride), dimensions - 1);
    }
};

/* Of every byte that was written, by whom, and where that value would begin. */
class Memory {
  public:
    void write(uintptr_t begin, uintptr_t end, int writer, uintptr_t origin) {
        if (begin >= end) return;
        forget(begin, end);
        pieces_[begin] = {end, begin, 0, {{0, end - begin, writer, origin}}};
    }
    /* Rows of several values side by side that leave no gap, as dq, dk and dv: one piece, not one for every row. */
    void write_side_by_side(std::vector<std::pair<Rows, int>> values) {
        std::sort(values.begin(), values.end(),
                  [](const auto &a, const auto &b) { return a.first.first < b.first.first; });
        const Rows &leftmost = values[0].first;
        const uintptr_t anchor = leftmost.first;
        uintptr_t next = anchor;
        std::vector<Column> columns;
        bool tiles = true;
        for (const auto &[rows, writer] : values) {
            tiles = tiles && rows.outer.size() == 1 && rows.first == next &&
                    rows.outer[0].count == leftmost.outer[0].count && rows.outer[0].stride == leftmost.outer[0].stride;
            columns.push_back({rows.first - anchor, rows.width, writer, rows.first});
            next = rows.first + rows.width;
        }
        const size_t period = (size_t)leftmost.outer[0].stride;
        if (tiles && next - anchor == period) {
            const uintptr_t end = anchor + (size_t)leftmost.outer[0].count * period;
            forget(anchor, end);
            pieces_[anchor] = {end, anchor, period, columns};
            return;
        }
        for (const auto &value : values) {
            const Rows &rows = value.first;
            rows.each([&, writer = value.second](uintptr_t at) { write(at, at + rows.width, writer, rows.first); });
        }
    }
    /* What lies at `from` lies at `to` too. */
    void copy(uintptr_t to, uintptr_t from, size_t bytes) {
        std::map<uintptr_t, Piece> copied;
        cut(from);
        cut(from + bytes);
        for (auto i = pieces_.lower_bound(from); i != pieces_.end() && i->first < from + bytes; ++i) {
            Piece piece = i->second;
            piece.end += to - from;
            piece.anchor += to - from;
            for (Column &column : piece.columns) column.origin += to - from;
            copied[i->first + (to - from)] = piece;
        }
        forget(to, to + bytes);
        pieces_.insert(copied.begin(), copied.end());
    }
    /* In the order in which they begin; bytes that nobody has written are those of writer -1. */
    std::vector<Source> sources(const Rows &rows) const {
        std::vector<Source> found;
        size_t extent = rows.width, count = 1;
        for (const Rows::Dimension &d : rows.outer) {
            extent += (size_t)((d.count - 1) * d.stride);
            count *= (size_t)d.count;
        }
        const auto piece = at(rows.first);
        if (piece != pieces_.end() && !piece->second.period && piece->second.end >= rows.first + extent) {
            const Column &column = piece->second.columns[0];
            return {{column.writer, (int64_t)(rows.first - column.origin), rows.width * count}};
        }
        rows.each([&](uintptr_t begin) { collect(found, rows.first, begin, begin + rows.width); });
        return found;
    }

  private:
    struct Column {
        size_t first, width;
        int writer;
        uintptr_t origin;
    };
    /* Up to `end`; the columns come again after every `period` bytes from `anchor` on, if it is not 0. */
    struct Piece {
        uintptr_t end, anchor;
        size_t period;
        std::vector<Column> columns;
    };
    std::map<uintptr_t, Piece> pieces_;

    /* The piece that has this byte. */
    std::map<uintptr_t, Piece>::const_iterator at(uintptr_t address) const {
        auto i = pieces_.upper_bound(address);
        if (i == pieces_.begin() || (--i)->second.end <= address) return pieces_.end();
        return i;
    }
    void cut(uintptr_t address) {
        const auto i = at(address);
        if (i == pieces_.end() || i->first == address) return;
        const Piece right = i->second;
        pieces_[i->first].end = address;
        pieces_[address] = right;
    }
    void forget(uintptr_t begin, uintptr_t end) {
        cut(begin);
        cut(end);
        pieces_.erase(pieces_.lower_bound(begin), pieces_.lower_bound(end));
    }
    static void add(std::vector<Source> &found, int writer, int64_t delta, size_t bytes) {
        if (bytes == 0) return;
        for (Source &source : found)
            if (source.writer == writer && source.delta == delta) {
                source.bytes += bytes;
                return;
            }
        found.push_back({writer, delta, bytes});
    }
    /* How many bytes of a column lie between the anchor and `to` bytes behind it. */
    static size_t bytes_up_to(size_t to, size_t period, const Column &column) {
        const size_t in_row = to % period;
        return to / period * column.width +
               (in_row <= column.first ? 0 : std::min(in_row - column.first, column.width));
    }
    void collect(std::vector<Source> &found, uintptr_t base, uintptr_t begin, uintptr_t end) const {
        while (begin < end) {
            const auto i = at(begin);
            if (i == pieces_.end()) {
                const auto next = pieces_.upper_bound(begin);
                const uintptr_t to = next == pieces_.end() ? end : std::min(end, next->first);
                add(found, -1, 0, to - begin);
                begin = to;
                continue;
            }
            const Piece &piece = i->second;
            const uintptr_t to = std::min(end, piece.end);
            for (const Column &column : piece.columns) {
                const size_t bytes = piece.period ? bytes_up_to(to - piece.anchor, piece.period, column) -
                                                        bytes_up_to(begin - piece.anchor, piece.period, column)
                                                  : to - begin;
                add(found, column.writer, (int64_t)(base - column.origin), bytes);
            }
            begin = to;
        }
    }
};

/* ------------------------------------------------------------------------------------------------------ arguments of ops */

/* What an op is told beside its views. */
inline std::string flags_of(loom_op op, const void *arguments) {
    char text[160] = "";
    const auto say = [&](const char *format, auto... values) { std::snprintf(text, sizeof text, format, values...); };
#define OF(name) const auto &a = *static_cast<const struct loom_##name *>(arguments)
    switch (op) {
    case LOOM_OP_embedding_forward: {
        OF(embedding_forward);
        say(" first_position=%" PRId64, a.first_position);
    } break;
    case LOOM_OP_embedding_backward: {
        OF(embedding_backward);
        say(" first_position=%" PRId64 "%s%s", a.first_position, a.accumulate_tokens ? " accumulate_tokens" : "",
            a.accumulate_positions ? " accumulate_positions" : "");
    } break;
    case LOOM_OP_layernorm_forward: {
        OF(layernorm_forward);
        say(" epsilon=%.9g", (double)a.epsilon);
    } break;
    case LOOM_OP_layernorm_backward: {
        OF(layernorm_backward);
        say("%s", a.accumulate ? " accumulate" : "");
    } break;
    case LOOM_OP_matmul_forward: {
        OF(matmul_forward);
        say("%s%s%s", a.activation ? " " : "", a.activation ? loom_activation_name(a.activation) : "",
            a.transposed ? " transposed" : "");
    } break;
    case LOOM_OP_matmul_backward_input: {
        OF(matmul_backward_input);
        say("%s%s", a.transposed ? " transposed" : "", a.accumulate ? " accumulate" : "");
    } break;
    case LOOM_OP_matmul_backward_weight: {
        OF(matmul_backward_weight);
        say("%s%s", a.transposed ? " transposed" : "", a.accumulate ? " accumulate" : "");
    } break;
    case LOOM_OP_attention_forward: {
        OF(attention_forward);
        say(" first_query=%" PRId64 " scale=%.9g", a.first_query, (double)a.scale);
    } break;
    case LOOM_OP_attention_backward: {
        OF(attention_backward);
        say(" first_query=%" PRId64 " scale=%.9g", a.first_query, (double)a.scale);
    } break;
    case LOOM_OP_softmax_forward: {
        OF(softmax_forward);
        say(" scale=%.9g", (double)a.scale);
    } break;
    case LOOM_OP_softmax_backward: {
        OF(softmax_backward);
        say(" scale=%.9g", (double)a.scale);
    } break;
    case LOOM_OP_cross_entropy: {
        OF(cross_entropy);
        say(" vocab_size=%" PRId64, a.vocab_size);
    } break;
    case LOOM_OP_block_sum: {
        OF(block_sum);
        say(" block=%" PRId64 "%s", a.block, a.square ? " square" : "");
    } break;
    case LOOM_OP_adamw: {
        OF(adamw);
        std::string all = " seed=" + std::to_string(a.seed) + " first=" + std::to_string(a.first);
        for (int i = 0; i < a.decayed.n; i++)
            all += (i ? "," : " decayed=") + std::to_string(a.decayed.at[i].first) + ".." +
                   std::to_string(a.decayed.at[i].last);
        return all;
    }
    case LOOM_OP_fill: {
        OF(fill);
        say(" value=%.9g", (double)a.value);
    } break;
    default: break;
    }
    return text;
}

/* Where an op finds the step's scalars, and whether it writes them. */
inline const loom_scalars *scalars_of(loom_op op, const void *arguments, bool *writes) {
    *writes = op == LOOM_OP_optimizer_scalars;
    if (op == LOOM_OP_optimizer_scalars) return static_cast<const struct loom_optimizer_scalars *>(arguments)->scalars;
    if (op == LOOM_OP_cross_entropy) return static_cast<const struct loom_cross_entropy *>(arguments)->scalars;
    if (op == LOOM_OP_adamw) return static_cast<const struct loom_adamw *>(arguments)->scalars;
    return nullptr;
}

#undef OF

/* "f(2,8,16)", with "/(384,16,1)" where it is not contiguous; outer dimensions of 1 are left out. */
inline std::string shape_of(const loom_view &view) {
    int first = 0;
    while (first < 3 && view.shape[first] == 1) first++;
    std::string shape, strides;
    bool contiguous = true;
    int64_t expected = 1;
    for (int i = 3; i >= first; i--) {
        contiguous = contiguous && (view.shape[i] == 1 || view.stride[i] == expected);
        expected *= view.shape[i];
        shape = (i > first ? "," : "") + std::to_string(view.shape[i]) + shape;
        strides = (i > first ? "," : "") + std::to_string(view.stride[i]) + strides;
    }
    return std::string(1, "fbhdil"[view.dtype]) + "(" + shape + ")" + (contiguous ? "" : "/(" + strides + ")");
}

/* ------------------------------------------------------------------------------------------------------- the device */

/* Writes down all that it is given. Its memory is a range of addresses, which nothing may touch. */
class Tracer {
  public:
    loom_device device = {};
    std::string text;
    int64_t operations = 0;
    std::vector<std::string> faults; /* what an op reads and nobody wrote, and the like */

    Tracer() {
        ops_ = *loom_visiting_ops();
        ops_.supports = [](const loom_device *, loom_op op, const void *arguments, const char **why) {
            *why = loom_check_arguments(op, arguments, LOOM_F32, 1u << LOOM_F32 | 1u << LOOM_BF16 | 1u << LOOM_F16);
            return *why == nullptr;
        };
        ops_.workspace = [](const loom_device *, loom_op, const void *) { return (size_t)0; };
        ops_.prepare = [](loom_device *, loom_op, const void *, loom_error *) { return true; };
        device.name = "trace";
        device.ops = &ops_;
        device.storage = device.statistics = LOOM_F32;
        device.threads = 1;
        device.implementation = this;
        device.allocate_host = [](loom_device *d, void **memory, size_t bytes, loom_error *) {
            *memory = of(d)->reserve(bytes);
            return true;
        };
        device.release_host = [](loom_device *, void *, size_t) {};
        device.copy = [](loom_device *d, loom_stream *stream, void *to, const void *from, size_t bytes,
                         loom_copy_kind kind) { of(d)->copy(stream, to, from, bytes, kind); };
        device.synchronize = [](loom_device *d, loom_stream *stream, loom_error *) {
            of(d)->line("synchronize s%d", number(stream));
            return true;
        };
        device.stream_open = [](loom_device *d, loom_stream **stream, loom_error *) {
            *stream = (loom_stream *)(uintptr_t)++of(d)->streams_;
            return true;
        };
        device.stream_close = [](loom_device *, loom_stream *) {};
        device.stream_wait_stream = [](loom_device *d, loom_stream *later, loom_stream *earlier) {
            of(d)->line("order s%d after s%d", number(later), number(earlier));
        };
        device.event_open = [](loom_device *d, loom_event **event, loom_error *) {
            *event = (loom_event *)(uintptr_t)++of(d)->events_;
            return true;
        };
        device.event_close = [](loom_device *, loom_event *) {};
        device.event_record = [](loom_device *d, loom_event *event, loom_stream *stream) {
            of(d)->line("mark %d in s%d", number(event), number(stream));
        };
        device.stream_wait_event = [](loom_device *d, loom_stream *stream, loom_event *event) {
            of(d)->line("s%d awaits mark %d", number(stream), number(event));
        };
    }
    ~Tracer() {
        for (const auto &[memory, bytes] : reserved_) munmap(memory, bytes);
    }
    Tracer(const Tracer &) = delete;
    Tracer &operator=(const Tracer &) = delete;

    void watch(loom_context *ctx) {
        ctx->ops = &ops_;
        ctx->visitor = this;
        ctx->visit = [](void *visitor, loom_op op, const void *arguments) {
            static_cast<Tracer *>(visitor)->op(op, arguments);
        };
    }
    void *reserve(size_t bytes) {
        const size_t size = bytes ? bytes : 1;
        void *memory = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) throw std::runtime_error("no addresses");
        reserved_.push_back({memory, size});
        return memory;
    }
    /* Ops are numbered from 0 again, and named after it. */
    void section(const std::string &name) {
        section_ = name;
        count_ = 0;
        line("--- %s", name.c_str());
    }
    __attribute__((format(printf, 2, 3))) void line(const char *format, ...) {
        char buffer[256];
        va_list arguments;
        va_start(arguments, format);
        std::vsnprintf(buffer, sizeof buffer, format, arguments);
        va_end(arguments);
        text += buffer;
        text += '\n';
    }

    /* What lies there has this name from now on: bytes of a value that begins at `origin`; and this is what is said of
     * what is written there. */
    void name(const std::string &what, const void *begin, size_t bytes, const void *origin) {
        const int writer = new_writer(what);
        memory_.write((uintptr_t)begin, (uintptr_t)begin + bytes, writer, (uintptr_t)origin);
        lasting_.write((uintptr_t)begin, (uintptr_t)begin + bytes, writer, (uintptr_t)origin);
    }

    /* ------------------------------------------------------------------------------------------- between ranks */

    void communicate(const loom_comm *comm, const loom_comm_operation &o, loom_stream *after) {
        static const char *const names[] = {"all_reduce", "reduce_scatter", "all_gather", "broadcast", "exchange"};
        const size_t size = loom_dtype_size(o.dtype);
        const int64_t in = loom_comm_rows_in(comm, &o) * (o.kind == LOOM_EXCHANGE ? o.send_count : o.count);
        const int64_t out = loom_comm_rows_out(comm, &o) * o.count;
        begin(names[o.kind]);
        if (o.kind == LOOM_EXCHANGE) text += " from=" + std::to_string(o.from) + " to=" + std::to_string(o.to);
        if (in > 0) read("in", loom_view_1d((void *)o.in, o.dtype, in));
        if (out > 0) {
            const loom_view view = loom_view_1d(o.out, o.dtype, out);
            shown("out", view);
            place(view);
            memory_.write((uintptr_t)o.out, (uintptr_t)o.out + (size_t)out * size, new_writer(own_name("out")),
                          (uintptr_t)o.out);
        }
        text += " after=s" + std::to_string(number(after)) + "\n";
        op_ids_.push_back(own_name(""));
        count_++;
    }
    void await(loom_comm_op_id op_id, loom_stream *stream) {
        line("s%d awaits %s", number(stream), op_ids_[(size_t)op_id - 1].c_str());
    }

  private:
    loom_ops ops_ = {};
    Memory memory_;  /* who wrote what lies there */
    Memory lasting_; /* what has a name for as long as the model lives */
    std::vector<std::string> writers_;
    std::vector<std::string> op_ids_;
    std::vector<std::pair<void *, size_t>> reserved_;
    std::string section_;
    int count_ = 0, streams_ = 0, events_ = 0;

    static Tracer *of(loom_device *device) {
        return static_cast<Tracer *>(device->implementation);
    }
    static int number(const void *handle) {
        return (int)(uintptr_t)handle;
    }
    int new_writer(const std::string &name) {
        writers_.push_back(name);
        return (int)writers_.size() - 1;
    }
    std::string own_name(const char *output) const {
        return section_ + ":" + std::to_string(count_) + (*output ? "." : "") + output;
    }
    void begin(const char *what) {
        text += std::to_string(count_) + " " + what;
        operations++;
    }
    void shown(const char *name, const loom_view &view) {
        text += std::string(" ") + name + ":" + shape_of(view);
    }
    static std::string bytes_behind(int64_t bytes) {
        return bytes == 0 ? "" : (bytes > 0 ? "+" : "") + std::to_string(bytes);
    }
    void read(const char *name, const loom_view &view) {
        shown(name, view);
        show_sources(name, memory_.sources(Rows(view)));
    }
    void show_sources(const char *name, const std::vector<Source> &sources) {
        text += "=";
        if (sources.size() > 1) text += "{";
        for (size_t i = 0; i < sources.size(); i++) {
            const Source &s = sources[i];
            if (s.writer < 0) faults.push_back(own_name(name) + " is read, and nobody wrote it");
            text += (i ? "|" : "") + (s.writer < 0 ? "?" : writers_[(size_t)s.writer] + bytes_behind(s.delta));
            if (sources.size() > 1) text += "*" + std::to_string(s.bytes);
        }
        if (sources.size() > 1) text += "}";
    }
    void place(const loom_view &view) {
        const Source s = lasting_.sources(Rows((uintptr_t)view.data, 1))[0];
        if (s.writer < 0) return;
        const std::string where = writers_[(size_t)s.writer] + bytes_behind(s.delta), same = "=" + where;
        const bool is_same = text.size() > same.size() && !text.compare(text.size() - same.size(), same.size(), same);
        text += ">" + (is_same ? "" : where);
    }
    void write(const std::vector<std::pair<const char *, loom_view>> &outputs) {
        std::vector<std::pair<Rows, int>> strided;
        for (const auto &[name, view] : outputs) {
            const Rows rows(view);
            const int writer = new_writer(own_name(name));
            if (rows.outer.empty())
                memory_.write(rows.first, rows.first + rows.width, writer, rows.first);
            else
                strided.push_back({rows, writer});
        }
        if (!strided.empty()) memory_.write_side_by_side(strided);
    }
    void op(loom_op op, const void *arguments) {
        std::vector<std::pair<const char *, loom_view>> outputs;
        begin(loom_op_name(op));
        loom_argument list[LOOM_MOST_VIEWS];
        const int n = loom_op_views(op, arguments, list);
        for (int i = 0; i < n; i++) {
            const loom_view &view = *list[i].view;
            if (list[i].read)
                read(list[i].name, view);
            else
                shown(list[i].name, view);
            if (!list[i].written) continue;
            place(view);
            outputs.push_back({list[i].name, view});
        }
        bool writes;
        if (const loom_scalars *scalars = scalars_of(op, arguments, &writes)) {
            const loom_view view = loom_view_1d((void *)scalars, LOOM_I32, sizeof *scalars / 4);
            text += " scalars";
            show_sources("scalars", memory_.sources(Rows(view)));
            if (writes) outputs.push_back({"scalars", view});
        }
        text += flags_of(op, arguments) + "\n";
        write(outputs);
        count_++;
    }
    /* What it moves are the values that lie there, in the order in which they came to be, without what lies between. */
    void copy(loom_stream *stream, void *to, const void *from, size_t bytes, loom_copy_kind kind) {
        static const char *const kinds[] = {"to device", "to host", "on device"};
        std::vector<Source> sources = memory_.sources(Rows((uintptr_t)from, bytes));
        line("copy %s in s%d", kinds[kind], number(stream));
        text.pop_back();
        if (sources.size() == 1 && sources[0].writer < 0) {
            memory_.write((uintptr_t)from, (uintptr_t)from + bytes, new_writer("host"), (uintptr_t)from);
            sources = memory_.sources(Rows((uintptr_t)from, bytes));
        }
        std::map<int, size_t> moved;
        for (const Source &s : sources)
            if (s.writer >= 0) moved[s.writer] += s.bytes;
        for (const auto &[writer, count] : moved) text += " " + writers_[(size_t)writer] + "*" + std::to_string(count);
        place(loom_view_1d(to, LOOM_I32, 1));
        text += "\n";
        memory_.copy((uintptr_t)to, (uintptr_t)from, bytes);
    }
};

/* ---------------------------------------------------------------------------------------------------- other ranks */

/* A communicator of which this is one rank, and that has no others. */
class Ranks {
  public:
    Ranks(Tracer *tracer, int size, int rank) {
        backend_.attach = [](loom_comm *, size_t, loom_error *) { return true; };
        backend_.post = [](loom_comm *comm, const loom_comm_operation *operation, loom_stream *after) {
            of(comm)->communicate(comm, *operation, after);
        };
        backend_.wait = [](loom_comm *comm, loom_comm_op_id op_id, loom_stream *stream, loom_error *) {
            of(comm)->await(op_id, stream);
            return true;
        };
        backend_.synchronize = [](loom_comm *comm, loom_stream *stream, loom_error *error) {
            return comm->device->synchronize(comm->device, stream, error);
        };
        base_.comm.name = "trace";
        base_.comm.size = base_.comm.local_size = size;
        base_.comm.rank = base_.comm.local_rank = rank;
        base_.comm.backend = &backend_;
        require([&](loom_error *error) { return loom_comm_attach(comm(), &tracer->device, 0, error); });
    }
    loom_comm *comm() {
        return &base_.comm;
    }

  private:
    loom_comm_base base_ = {};
    loom_comm_backend backend_ = {};
    static Tracer *of(loom_comm *comm) {
        return static_cast<Tracer *>(comm->device->implementation);
    }
};

} // namespace trace

#endif
