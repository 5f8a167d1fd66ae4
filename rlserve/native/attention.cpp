// Attention of one layer, for programs, and for decoders that are none.

#include "attention.h"

namespace rlserve {

template <typename Element, typename Cached>
void run_attention(Team& team, const Plan& plan, const Attention<Element, Cached>& layer, Element* qkv, Element* out) {
    layer.run(team, plan, qkv, out);
}

template void run_attention(Team&, const Plan&, const Attention<float, float>&, float*, float*);
template void run_attention(Team&, const Plan&, const Attention<float, int8_t>&, float*, float*);
template void run_attention(Team&, const Plan&, const Attention<bfloat16, bfloat16>&, bfloat16*, bfloat16*);
template void run_attention(Team&, const Plan&, const Attention<bfloat16, int8_t>&, bfloat16*, bfloat16*);

namespace {

template <typename Element, typename Cached>
void attend(const Step& step, Element* qkv, const Element* query_norm, const Element* key_norm,
            const LayerCache& cache, Element* out, int num_threads) {
    const Plan plan(step);
    run_team(num_threads, [&](Team& team) {
        run_attention(team, plan, Attention<Element, Cached>{step, query_norm, key_norm, cache}, qkv, out);
    });
}

}  // namespace
}  // namespace rlserve

#pragma GCC visibility push(default)
extern "C" {

#define RLSERVE_ATTEND(NAME, ELEMENT, CACHED)                                                                \
    void NAME(const rlserve::Step* step, ELEMENT* qkv, const ELEMENT* query_norm, const ELEMENT* key_norm,   \
              const rlserve::LayerCache* cache, ELEMENT* out, int num_threads) {                             \
        rlserve::attend<ELEMENT, CACHED>(*step, qkv, query_norm, key_norm, *cache, out, num_threads);        \
    }

RLSERVE_ATTEND(attend_float32, float, float)
RLSERVE_ATTEND(attend_bfloat16, rlserve::bfloat16, rlserve::bfloat16)
RLSERVE_ATTEND(attend_int8_float32, float, int8_t)
RLSERVE_ATTEND(attend_int8_bfloat16, rlserve::bfloat16, int8_t)
}
