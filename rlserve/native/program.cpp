// A whole step of the decoder as a list of operations, run by one team of threads from the first to the last.
//
//     embed ─► norm ─► linear ─► attend ─► linear ─► add and norm ─► linear ─► gate ─► linear ─► … ─► head ─► cap
//
// The list is made once, by decoder_program.py; only the sizes of the step and the layout change from step to step.

#include <time.h>

#include <atomic>

#include "attention.h"
#include "low_rank.h"
#include "pointwise.h"

namespace rlserve {

// Mirrored by Kind in program.py.
enum Kind : int32_t { EMBED, NORM, LINEAR, ATTEND, SILU_MUL, GELU_TANH_MUL, TAKE_ROWS, PUT_ROWS, HEAD, CAP, ADD_LOW_RANKS };

// Mirrored by Operation in program.py. Which members an operation uses is said at its case in `run`.
struct Operation {
    Kind kind;
    int32_t inputs, outputs;  // numbers of a row
    int32_t first_output;     // of a product: whole panels before it are left out
    int32_t place;            // of a product among those that adapters can have
    int32_t of_wanted;        // its rows are those that TAKE_ROWS took, and not those of all tokens
    float factor, offset;
    const void *in, *weight, *other;
    const float* scales;
    void* out;
    void* residual;
    const Step* step;
    const LayerCache* cache;
};

// Mirrored by Program in program.py.
struct Program {
    const Operation* operations;
    const int64_t* token_ids;  // [T]
    const int64_t* last_rows;  // [R] tokens whose logits are wanted
    const Step* step;          // of any layer: its tokens and sequences are those of all
    int32_t num_operations, num_tokens, num_rows, num_threads;
    int32_t is_int8_cache;
    const StepAdapters* adapters;  // or null
    double wall_s, cpu_s;  // out: what the run took, and the processor time of all its threads
};

namespace {

template <typename Element>
void embed(Team& team, const Operation& op, const Program& program) {
    team.share(program.num_tokens, row_grain(team, program.num_tokens, op.outputs), [&](int t) {
        Element* out = static_cast<Element*>(op.out) + (long)t * op.outputs;
        copy_row(static_cast<const Element*>(op.weight), program.token_ids[t], op.outputs, out);
        if (op.factor != 1.0f)
            for (int i = 0; i < op.outputs; ++i) assign(out[i], to_float(out[i]) * op.factor);
    });
}

template <typename Element>
void attend(Team& team, const Operation& op, const Program& program, const Plan& plan) {
    const Element *query_norm = static_cast<const Element*>(op.weight), *key_norm = static_cast<const Element*>(op.other);
    Element *qkv = static_cast<Element*>(const_cast<void*>(op.in)), *out = static_cast<Element*>(op.out);
    if (program.is_int8_cache)
        run_attention(team, plan, Attention<Element, int8_t>{*op.step, query_norm, key_norm, *op.cache}, qkv, out);
    else
        run_attention(team, plan, Attention<Element, Element>{*op.step, query_norm, key_norm, *op.cache}, qkv, out);
}

template <typename Element, typename Out>
void multiply(Team& team, const Operation& op, int num_rows) {
    const Linear<Element, Out> linear{op.weight,  static_cast<const float*>(op.other), op.scales, op.inputs,
                                      op.outputs, op.first_output / PANEL};
    run_linear(team, linear, static_cast<const Element*>(op.in), num_rows, static_cast<Out*>(op.out));
}

template <typename Element>
void take_rows(Team& team, const Operation& op, const Program& program) {
    team.share(program.num_rows, row_grain(team, program.num_rows, op.outputs), [&](int r) {
        const Element* row = static_cast<const Element*>(op.in) + program.last_rows[r] * op.outputs;
        std::copy_n(row, op.outputs, static_cast<Element*>(op.out) + (long)r * op.outputs);
    });
}

template <typename Element>
void put_rows(Team& team, const Operation& op, const Program& program) {
    team.share(program.num_rows, row_grain(team, program.num_rows, op.inputs), [&](int r) {
        const Element* row = static_cast<const Element*>(op.in) + (long)r * op.inputs;
        std::copy_n(row, op.inputs, static_cast<Element*>(op.out) + program.last_rows[r] * op.outputs);
    });
}

// The attention of operations of wanted rows, if there are such operations.
Plan plan_of_wanted(const Program& program) {
    const Operation *first = program.operations, *end = first + program.num_operations;
    const bool is_needed = std::any_of(first, end, [](const Operation& op) { return op.kind == ATTEND && op.of_wanted; });
    if (!is_needed) return {};
    std::vector<bool> attends(program.num_tokens, false);
    for (int r = 0; r < program.num_rows; ++r) attends[program.last_rows[r]] = true;
    return Plan(*program.step, attends);
}

struct Plans {
    Plan of_all, of_wanted;
};

template <typename Element>
void run(Team& team, const Operation& op, const Program& program, const Plans& plans, LowRanks<Element>& adapters) {
    const int num_rows = op.of_wanted ? program.num_rows : program.num_tokens;
    const Element* in = static_cast<const Element*>(op.in);
    Element* out = static_cast<Element*>(op.out);
    switch (op.kind) {
        case EMBED: return embed<Element>(team, op, program);  // weight [V, outputs] in panels, factor
        case NORM:  // residual, in (added to it, or null), weight, factor (epsilon), offset
            return add_rms_norm(team, static_cast<Element*>(op.residual), in, static_cast<const Element*>(op.weight),
                                out, num_rows, op.outputs, op.factor, op.offset);
        case LINEAR: return multiply<Element, Element>(team, op, num_rows);  // weight in panels, other: bias, scales
        case ATTEND:  // weight, other: norms of queries and keys, which are written of all tokens
            return attend<Element>(team, op, program, op.of_wanted ? plans.of_wanted : plans.of_all);
        case SILU_MUL: return gated<Silu>(team, in, out, num_rows, op.outputs);
        case GELU_TANH_MUL: return gated<GeluTanh>(team, in, out, num_rows, op.outputs);
        case TAKE_ROWS: return take_rows<Element>(team, op, program);  // those wanted
        case PUT_ROWS: return put_rows<Element>(team, op, program);    // back into rows of outputs, at their beginning
        case HEAD: return multiply<Element, float>(team, op, program.num_rows);  // a linear, to logits of float
        case ADD_LOW_RANKS:  // place, in, out: what adapters add to a linear
            if (program.adapters) add_low_ranks(team, adapters, op.place, in, op.inputs, out, op.outputs);
            return;
        case CAP: return cap(team, static_cast<float*>(op.out), program.num_rows, op.outputs, op.factor);
    }
}

double seconds(clockid_t clock) {
    timespec time;
    clock_gettime(clock, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

template <typename Element>
void run(Program& program) {
    const Plans plans{Plan(*program.step), plan_of_wanted(program)};
    LowRanks<Element> adapters(program.adapters);
    const double start_s = seconds(CLOCK_MONOTONIC);
    std::atomic<double> cpu_s{0.0};
    run_team(program.num_threads, [&](Team& team) {
        const double thread_start_s = seconds(CLOCK_THREAD_CPUTIME_ID);
        for (int i = 0; i < program.num_operations; ++i)
            run<Element>(team, program.operations[i], program, plans, adapters);
        cpu_s.fetch_add(seconds(CLOCK_THREAD_CPUTIME_ID) - thread_start_s);
    });
    program.wall_s = seconds(CLOCK_MONOTONIC) - start_s;
    program.cpu_s = cpu_s;
}

}  // namespace
}  // namespace rlserve

#pragma GCC visibility push(default)
extern "C" {

void run_program_float32(rlserve::Program* program) { rlserve::run<float>(*program); }

void run_program_bfloat16(rlserve::Program* program) { rlserve::run<rlserve::bfloat16>(*program); }
}
