from __future__ import annotations

from coscheduling import SCENARIOS, Outcome, compare


def outcome(
    num_rollout: int | None, span_s: float, *, seed: int = 0, counts: bool = True, reward: float = 0.5
) -> Outcome:
    return Outcome(
        name=f"{num_rollout}-{seed}",
        seed=seed,
        num_rollout=num_rollout,
        span_s=span_s,
        settled_rate=60 / span_s,
        num_moves=0,
        overrun_share=0.0,
        counts=counts,
        rewards=(reward, reward),
    )


def values(name: str, *outcomes: Outcome) -> dict[str, tuple[float | None, bool]]:
    return {check["name"]: (check["value"], check["met"]) for check in compare(SCENARIOS[name], outcomes)}


def test_the_best_split_is_the_one_whose_median_is_least_and_each_bar_has_its_check() -> None:
    spans_s = {None: (90.0, 100.0, 300.0), 6: (150.0, 140.0, 141.0), 7: (110.0, 20.0, 112.0)}
    runs = [outcome(split, span_s, seed=seed) for split, spans in spans_s.items() for seed, span_s in enumerate(spans)]
    found = values("kept-falls", *runs)
    assert found["kept-falls: rate ÷ best static (7)"] == (1.1, True)
    assert found["kept-falls: rate ÷ static of the start"] == (1.41, True)
    assert found["kept-falls: same rewards by trained tokens, p"] == (1.0, True)


def test_a_run_that_the_host_held_up_does_not_count() -> None:
    found = values("square-wave", outcome(None, 100.0), outcome(6, 90.0, counts=False), outcome(7, 95.0))
    assert found == {"square-wave: rate ÷ best static (7)": (0.95, False)}
    assert values("square-wave", outcome(None, 100.0, counts=False), outcome(7, 95.0)) == {
        "square-wave: runs that count": (1.0, False)
    }


def test_a_bad_start_is_judged_by_what_came_after_it() -> None:
    found = values("steady", outcome(None, 100.0), outcome(6, 98.0))
    assert found["steady: rate ÷ best static (6)"] == (0.98, False)
    assert found["steady: rate after 60 s ÷ best static"] == (0.98, True)


def test_rewards_that_differ_on_every_seed_are_seen() -> None:
    runs = [
        outcome(split, 100.0, seed=seed, reward=reward + seed / 1000)
        for split, reward in ((None, 0.3), (6, 0.6))
        for seed in range(3)
    ]
    runs[0] = outcome(None, 100.0, reward=0.29)
    value, met = values("square-wave", *runs)["square-wave: same rewards by trained tokens, p"]
    assert value is not None
    assert value < 0.01
    assert not met
