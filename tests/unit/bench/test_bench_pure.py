"""The load generator's decisions: lengths, arrivals, prompts, percentiles, goodput, rates over time."""

from __future__ import annotations

import math
import random
from itertools import islice, pairwise
from pathlib import Path
from statistics import fmean, pstdev

import numpy as np
import pytest
from bench_builders import make_record
from hypothesis import given
from hypothesis import strategies as st

from rlserve.bench.arrivals import arrival_times
from rlserve.bench.lengths import LogNormalLengths, parse_lengths
from rlserve.bench.prompts.base import joined
from rlserve.bench.prompts.exact import FolderTokens, PieceWriter, TextWriter, TokenIdWriter
from rlserve.bench.prompts.words import WORDS, WordWriter
from rlserve.bench.results.client_limit import ClientLoad
from rlserve.bench.results.goodput import goodput, parse_deadlines
from rlserve.bench.results.over_time import over_time
from rlserve.bench.results.record import Failure, RequestRecord
from rlserve.bench.results.statistics import distribution
from rlserve.bench.results.summary import Measurement, summarise
from rlserve.errors import UserError
from rlserve.tasks.character_tokenizer import character_tokenizer

IDLE = ClientLoad(lag_s=None, processor_share=0.0, late_s=None)


class TestLengths:
    @pytest.mark.parametrize(
        ("text", "mean", "deviation"),
        [
            ("512", 512.0, 0.0),
            ("10..20", 15.0, math.sqrt((11**2 - 1) / 12)),
            ("normal:500,40", 500.0, 40.0),
            ("lognormal:200,0.5", 200 * math.exp(0.125), 200 * math.exp(0.125) * math.sqrt(math.exp(0.25) - 1)),
        ],
    )
    def test_moments_are_those_of_the_distribution(self, text: str, mean: float, deviation: float) -> None:
        rng, lengths = random.Random(1), parse_lengths(text)
        drawn = [lengths.draw(rng) for _ in range(20_000)]
        assert fmean(drawn) == pytest.approx(mean, rel=0.02)
        assert pstdev(drawn) == pytest.approx(deviation, rel=0.05)

    def test_a_cap_cuts(self) -> None:
        lengths = parse_lengths("lognormal:200,2,300")
        assert lengths == LogNormalLengths(200.0, 2.0, 300)
        drawn = {lengths.draw(random.Random(seed)) for seed in range(200)}
        assert max(drawn) == 300

    @given(text=st.sampled_from(["1", "1..3", "normal:1,5", "lognormal:1,3,9"]), seed=st.integers())
    def test_no_length_is_below_one(self, text: str, seed: int) -> None:
        assert parse_lengths(text).draw(random.Random(seed)) >= 1

    @pytest.mark.parametrize("text", ["", "0", "-3", "1.5", "9..3", "0..4", "normal:0,1", "lognormal:5", "zipf:2,3"])
    def test_what_is_no_distribution_is_refused(self, text: str) -> None:
        with pytest.raises(UserError, match="distribution of lengths"):
            parse_lengths(text)


class TestArrivals:
    @pytest.mark.parametrize("burstiness", [0.25, 1.0, 16.0])
    def test_gaps_have_the_mean_and_the_variation_that_were_asked_for(self, burstiness: float) -> None:
        times_s = list(islice(arrival_times(5.0, burstiness=burstiness, rng=random.Random(3)), 40_000))
        gaps_s = [later - earlier for earlier, later in pairwise([0.0, *times_s])]
        assert fmean(gaps_s) == pytest.approx(1 / 5, rel=0.04)
        assert pstdev(gaps_s) / fmean(gaps_s) == pytest.approx(1 / math.sqrt(burstiness), rel=0.04)

    def test_the_number_of_poisson_arrivals_in_a_second_has_a_variance_like_its_mean(self) -> None:
        times_s = np.array(list(islice(arrival_times(4.0, burstiness=1.0, rng=random.Random(7)), 20_000)))
        counts = np.bincount(times_s.astype(int))[:-1]
        assert counts.var() / counts.mean() == pytest.approx(1.0, rel=0.06)

    def test_a_rate_of_infinity_has_all_at_once_and_a_shape_of_infinity_all_gaps_alike(self) -> None:
        assert set(islice(arrival_times(math.inf, burstiness=1.0, rng=random.Random(0)), 50)) == {0.0}
        even = islice(arrival_times(2.0, burstiness=math.inf, rng=random.Random(0)), 3)
        assert list(even) == [0.5, 1.0, 1.5]


class TestPrompts:
    def test_words_are_told_apart(self) -> None:
        assert len(set(WORDS)) == len(WORDS)
        assert len(WordWriter().write(20, random.Random(0)).split()) == 20

    def test_pieces_and_ids_have_the_number_that_was_asked_for(self) -> None:
        assert len(PieceWriter("abcdefgh").write(33, random.Random(0))) == 33
        assert len(TokenIdWriter(range(9)).write(33, random.Random(0))) == 33

    def test_too_few_pieces_are_refused_since_a_cache_would_know_all_prompts(self) -> None:
        with pytest.raises(UserError, match="3 pieces"):
            PieceWriter("abcabc")

    def test_prompts_are_joined_in_their_own_kind(self) -> None:
        assert joined(" a", " b") == " a b"
        assert joined((1,), (2, 3)) == (1, 2, 3)

    @pytest.fixture
    def characters(self, tmp_path: Path) -> FolderTokens:
        character_tokenizer("0123456789+=").save_pretrained(tmp_path)
        return FolderTokens(tmp_path)

    @given(num_tokens=st.integers(1, 200), seed=st.integers())
    def test_text_has_as_many_tokens_as_wanted_also_where_neighbours_merge(self, num_tokens: int, seed: int) -> None:
        text = TextWriter(Merging()).write(num_tokens, random.Random(seed))
        assert Merging().count(text) == num_tokens

    def test_a_vocabulary_without_words_gives_its_characters(self, characters: FolderTokens) -> None:
        assert sorted(characters.pieces()) == sorted("0123456789+=")
        assert characters.count(TextWriter(characters).write(50, random.Random(0))) == 50

    def test_a_folder_without_a_tokenizer_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"tokenizer\.json"):
            FolderTokens(tmp_path)
        (tmp_path / "tokenizer.json").write_text("{}")
        with pytest.raises(UserError, match="loads"):
            FolderTokens(tmp_path)


class Merging(FolderTokens):
    """A tokenizer to which two equal neighbours are one token."""

    def __init__(self) -> None:
        pass

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        last = ""
        for letter in text:
            if letter == last:
                last = ""
            else:
                ids.append(ord(letter))
                last = letter
        return ids

    def pieces(self) -> dict[str, int]:
        return {letter: ord(letter) for letter in "abcdefgh"}


class TestStatistics:
    @given(values=st.lists(st.floats(0, 1e6), min_size=1, max_size=200))
    def test_percentiles_lie_in_order_and_within(self, values: list[float]) -> None:
        found = distribution([*values, None])
        assert found is not None
        assert found.number == len(values)
        assert min(values) <= found.median <= found.p90 <= found.p95 <= found.p99 <= found.maximum == max(values)

    def test_percentiles_of_a_hundred_and_one_numbers_are_those_numbers(self) -> None:
        found = distribution(float(value) for value in range(101))
        assert found is not None
        assert (found.mean, found.median, found.p90, found.p95, found.p99) == (50, 50, 90, 95, 99)

    def test_nothing_has_no_distribution(self) -> None:
        assert distribution([None, None]) is None


class TestGoodput:
    def test_a_request_is_good_if_it_meets_every_deadline(self) -> None:
        records = [
            make_record(ttft_s=0.1, gaps_s=(0.01,)),
            make_record(ttft_s=0.3, gaps_s=(0.01,)),
            make_record(ttft_s=0.1, gaps_s=(0.05,)),
            make_record(ttft_s=0.3, gaps_s=(0.05,)),
            make_record(failure=Failure("timed out", "")),
        ]
        found = goodput(records, {"ttft": 200.0, "tpot": 20.0}, 2.0)
        assert (found.num_good, found.share, found.requests_per_s) == (1, 0.2, 0.5)
        assert found.num_late == {"ttft": 2, "tpot": 2}

    def test_a_single_token_has_no_time_per_output_token_to_miss(self) -> None:
        assert goodput([make_record(ttft_s=0.1)], {"tpot": 1e-3}, 1.0).num_good == 1

    def test_end_to_end_latency_is_to_the_end_of_the_answer(self) -> None:
        assert goodput([make_record(ttft_s=0.1, rest_s=0.2)], {"e2el": 250.0}, 1.0).num_good == 0

    @given(
        ttfts_s=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=20), limits=st.tuples(*[st.floats(1, 1000)] * 2)
    )
    def test_a_later_deadline_is_met_by_no_fewer(self, ttfts_s: list[float], limits: tuple[float, float]) -> None:
        records = [make_record(ttft_s=ttft_s) for ttft_s in ttfts_s]
        sooner, later = (goodput(records, {"ttft": limit}, 1.0).num_good for limit in sorted(limits))
        assert sooner <= later

    def test_deadlines_are_spelled_as_the_field_does(self) -> None:
        assert parse_deadlines(["ttft:200", "e2el:1.5"]) == {"ttft": 200.0, "e2el": 1.5}

    @pytest.mark.parametrize(
        "texts", [["ttft"], ["ttft:0"], ["ttft:x"], ["ttft:nan"], ["ttlt:5"], ["tpot:1", "tpot:2"]]
    )
    def test_what_is_no_deadline_is_refused(self, texts: list[str]) -> None:
        with pytest.raises(UserError, match="goodput"):
            parse_deadlines(texts)


class TestSummary:
    def test_rates_are_of_the_whole_run_and_failures_are_kept_by_kind(self) -> None:
        records = (
            make_record(ttft_s=0.5, gaps_s=(0.1, 0.1), num_input_tokens=10),
            make_record(ttft_s=1.5, gaps_s=(0.3, 0.3), num_input_tokens=20),
            make_record(failure=Failure("status 503", "queue full")),
            make_record(failure=Failure("status 503", "later words")),
            make_record(failure=Failure("timed out", "")),
        )
        found = summarise(measured(records, duration_s=4.0), {})
        assert (found.num_answered, found.num_failed, found.requests_per_s) == (2, 3, 0.5)
        assert (found.output_tokens_per_s, found.input_tokens_per_s) == (1.5, 7.5)
        assert [(kind, count.number, count.example) for kind, count in found.failures.items()] == [
            ("status 503", 2, "queue full"),
            ("timed out", 1, ""),
        ]
        assert found.ttft_s is not None
        assert found.ttft_s.mean == 1.0
        assert found.itl_s is not None
        assert found.itl_s.number == 4
        assert found.tokens_per_chunk == 1.0

    def test_the_mean_number_in_flight_is_littles_law(self) -> None:
        records = tuple(make_record(sent_s=float(second), ttft_s=1.0, rest_s=1.0) for second in range(9))
        found = summarise(measured(records, duration_s=10.0), {})
        assert found.latency_s is not None
        assert found.mean_in_flight == pytest.approx(found.requests_per_s * found.latency_s.mean)

    def test_a_run_without_requests_has_no_rates(self) -> None:
        found = summarise(measured((), duration_s=0.0), {"ttft": 1.0})
        assert (found.requests_per_s, found.ttft_s, found.tokens_per_chunk) == (0.0, None, None)

    def test_tokens_over_time_add_up_and_so_does_time_in_flight(self) -> None:
        records = [
            make_record(sent_s=0.5, ttft_s=1.0, gaps_s=(1.0, 1.0)),
            make_record(sent_s=2.0, ttft_s=0.25),
            make_record(sent_s=0.0, rest_s=3.9, streamed=False, num_output_tokens=12),
        ]
        found = over_time(records, 4.0, num_bins=8)
        assert sum(found.output_tokens_per_s) * 0.5 == pytest.approx(3 + 1 + 12)
        assert sum(found.requests_in_flight) * 0.5 == pytest.approx(sum(record.latency_s for record in records))
        assert found.output_tokens_per_s[-1] == (12 + 1) / 0.5


class TestClientLimit:
    def test_a_lag_is_a_limit_beside_gaps_that_it_shows_in(self) -> None:
        client = ClientLoad(lag_s=distribution([0.002] * 9), processor_share=0.1, late_s=None)
        assert client.warnings(distribution([0.050])) == []
        assert "2.0 ms" in client.warnings(distribution([0.010]))[0]
        assert client.warnings(distribution([0.0])) == [], "pieces that came together say nothing"

    def test_a_client_without_a_processor_left_is_a_limit(self) -> None:
        assert "95%" in ClientLoad(lag_s=None, processor_share=0.95, late_s=None).warnings(None)[0]


def measured(records: tuple[RequestRecord, ...], *, duration_s: float) -> Measurement:
    return Measurement(load="rate 1/s", level=1.0, records=records, duration_s=duration_s, client=IDLE)
