"""How many nodes of which type a run asks for.

::

    wish, each time ──► the least of grow_after_s ─────┐ above the target: it becomes the target
                    └─► the most of shrink_after_s ────┤ below it, and cooldown_s after more were asked for: the same
                                                       ▼
    target ──► nodes by type, the cheapest for what they do first, never above a ceiling or the budget of an hour
                   │
                   └──► a type whose nodes do not come in node_timeout_s is passed over for retry_after_s

What counts against the budget is what may have to be paid at the same moment: of each type the nodes that are asked
for, or those that are there and have not ended yet, whichever is more. So nothing new is asked for in the place of a
node before that has gone, where the budget has no room for both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from rlserve.manager.scale_out.base import AskState, Decision, NodeType, NodeView, Situation, Terms

NUM_GANGS_NEEDED = 2
"""That a run goes on with: one trains, one rolls out."""
_TOLERANCE = 1e-9
"""Of a budget, as a share: three times a third is a whole."""


@dataclass(frozen=True, kw_only=True)
class _Count:
    """Nodes of each type."""

    here: Counter[str]
    ending: Counter[str]


def decide(situation: Situation, state: AskState, terms: Terms) -> tuple[Decision, AskState]:
    """What to ask for and to give up. A pure function: equal arguments give equal results."""
    count = _count(situation.nodes)
    asked = _asked_before(state, count, terms)
    state = _note_wish(situation, state, terms)
    late = _late(situation, state, count, asked, terms.node_timeout_s)
    asked.update({name: -number for name, number in late.items()})
    refused = {name: until for name, until in state.refused_until_s.items() if until > situation.time_s}
    refused |= dict.fromkeys(late, situation.time_s + terms.retry_after_s)
    target, why = _target(situation, state, terms, asked)
    num_before = _num_gangs(asked, terms)
    is_shrinking = target < (num_before if state.target is None else state.target)
    asked, obstacle = _allocate(target, asked, situation, count, terms, refused, is_shrinking=is_shrinking)
    grew = _num_gangs(asked, terms) > num_before
    state = replace(
        state,
        target=target,
        asked=dict(asked),
        here=dict(count.here),
        waits_since_s=_waits_since(situation, state, count, asked),
        refused_until_s=refused,
        grown_s=situation.time_s if grew else state.grown_s,
    )
    decision = Decision(
        asked={each.name: asked[each.name] for each in terms.types},
        give_up=tuple(_give_up(situation.nodes, asked, count)),
        late=late,
        reason=f"{why}; {obstacle}" if obstacle else why,
        obstacle=obstacle,
    )
    return decision, state


def price_per_hour(asked: Mapping[str, int], situation: Situation, terms: Terms) -> float | None:
    """Of all slots of the run, those included that are still to come or to end; None where a price is missing."""
    if any(each.price_per_hour is None for each in terms.types):
        return None
    return _price(Counter(asked), situation, _count(situation.nodes), terms)


def _count(nodes: Iterable[NodeView]) -> _Count:
    nodes = list(nodes)
    return _Count(
        here=Counter(node.type for node in nodes if not node.is_ending),
        ending=Counter(node.type for node in nodes if node.is_ending),
    )


def _asked_before(state: AskState, count: _Count, terms: Terms) -> Counter[str]:
    """At first that is what there is."""
    if state.target is not None:
        return Counter(state.asked)
    return Counter({each.name: min(count.here[each.name], each.max_nodes) for each in terms.types})


def _num_gangs(nodes: Mapping[str, int], terms: Terms) -> int:
    return sum(each.num_gangs * nodes.get(each.name, 0) for each in terms.types)


def _note_wish(situation: Situation, state: AskState, terms: Terms) -> AskState:
    """Where nothing is known, nothing is remembered: a window must be whole before it says anything."""
    if situation.num_wanted is None:
        return replace(state, wishes=())
    wishes = (*state.wishes, (situation.time_s, situation.num_wanted))
    oldest_s = situation.time_s - max(terms.grow_after_s, terms.shrink_after_s)
    first = max((index for index, (time_s, _) in enumerate(wishes) if time_s <= oldest_s), default=0)
    return replace(state, wishes=wishes[first:])


def _window(state: AskState, time_s: float, length_s: float) -> list[int]:
    """What was wanted in that time; nothing where it is not known for so long."""
    if not state.wishes or state.wishes[0][0] > time_s - length_s:
        return []
    return [number for at_s, number in state.wishes if at_s >= time_s - length_s]


def _target(situation: Situation, state: AskState, terms: Terms, asked: Counter[str]) -> tuple[int, str]:
    """Gangs that are made for."""
    least = max(0, NUM_GANGS_NEEDED - situation.num_other_gangs)
    target = max(least, _num_gangs(asked, terms) if state.target is None else state.target)
    if situation.num_wanted is None:
        return target, situation.why
    growing = min(_window(state, situation.time_s, terms.grow_after_s), default=target)
    if growing > target:
        return growing, situation.why
    shrinking = max(least, max(_window(state, situation.time_s, terms.shrink_after_s), default=target))
    rests = state.grown_s is not None and situation.time_s - state.grown_s < terms.cooldown_s
    if shrinking < target and not rests:
        return shrinking, situation.why
    return target, situation.why


def _allocate(
    target: int,
    asked: Counter[str],
    situation: Situation,
    count: _Count,
    terms: Terms,
    refused: Mapping[str, float],
    *,
    is_shrinking: bool,
) -> tuple[Counter[str], str | None]:
    """Nodes by type that make as many gangs as the target, or the next more; with what stands in the way of more. Only
    a target that falls takes nodes away that are there."""
    asked = Counter({each.name: min(asked[each.name], each.max_nodes) for each in terms.types})
    for each in terms.types:
        if each.name not in refused:
            while asked[each.name] < each.min_nodes and _may_ask(each, asked, situation, count, terms):
                asked[each.name] += 1
    asked, obstacle = _grown(target, asked, situation, count, terms, refused)
    for each in _first_to_go(asked, count, terms):
        least = each.min_nodes if is_shrinking else max(each.min_nodes, count.here[each.name])
        while asked[each.name] > least and _num_gangs(asked, terms) - each.num_gangs >= target:
            asked[each.name] -= 1
    return asked, obstacle


def _grown(
    target: int,
    asked: Counter[str],
    situation: Situation,
    count: _Count,
    terms: Terms,
    refused: Mapping[str, float],
) -> tuple[Counter[str], str | None]:
    asked = Counter(asked)
    while _num_gangs(asked, terms) < target:
        possible = [each for each in terms.ranked if asked[each.name] < each.max_nodes]
        if not possible:
            return asked, "no more slots are allowed (scale_out.max_slots)"
        offered = [each for each in possible if each.name not in refused]
        if not offered:
            names = ", ".join(each.name for each in possible)
            return asked, f"nodes of {names} did not come, and are tried again later"
        payable = [each for each in offered if _may_ask(each, asked, situation, count, terms)]
        if not payable:
            return asked, f"more would cost over {terms.money_per_hour:g} an hour (scale_out.money_per_hour)"
        asked[payable[0].name] += 1
    return asked, None


def _first_to_go(asked: Counter[str], count: _Count, terms: Terms) -> list[NodeType]:
    """Those that have not come, then the dearest for what they do."""
    return sorted(terms.types, key=lambda each: (asked[each.name] > count.here[each.name], each.rank), reverse=True)


def _may_ask(node: NodeType, asked: Counter[str], situation: Situation, count: _Count, terms: Terms) -> bool:
    """Whether the budget has room for one more."""
    if terms.money_per_hour is None:
        return True
    more = asked + Counter({node.name: 1})
    before, after = (_price(each, situation, count, terms) for each in (asked, more))
    return after <= before or after <= terms.money_per_hour * (1 + _TOLERANCE)


def _price(asked: Counter[str], situation: Situation, count: _Count, terms: Terms) -> float:
    """Most that may have to be paid at once, by the hour."""
    return situation.other_price_per_hour + sum(
        (each.price_per_hour or 0.0) * max(asked[each.name], count.here[each.name] + count.ending[each.name])
        for each in terms.types
    )


def _late(
    situation: Situation, state: AskState, count: _Count, asked: Counter[str], timeout_s: float
) -> dict[str, int]:
    """Nodes that are waited for no more."""
    return {
        name: asked[name] - count.here[name]
        for name, since_s in state.waits_since_s.items()
        if asked[name] > count.here[name] == state.here.get(name, 0) and situation.time_s - since_s >= timeout_s
    }


def _waits_since(situation: Situation, state: AskState, count: _Count, asked: Counter[str]) -> dict[str, float]:
    """Each node that comes, and each that is asked for, begins the time anew."""
    waiting = [name for name, number in asked.items() if number > count.here[name]]
    return {
        name: state.waits_since_s[name]
        if name in state.waits_since_s
        and (state.asked[name], state.here.get(name, 0)) == (asked[name], count.here[name])
        else situation.time_s
        for name in waiting
    }


def _give_up(nodes: Iterable[NodeView], asked: Counter[str], count: _Count) -> Iterable[str]:
    """Those that roll out go first, of them the last that were named."""
    for name, num_here in count.here.items():
        here = sorted(
            (node for node in nodes if node.type == name and not node.is_ending),
            key=lambda node: (not node.trains, node.id),
            reverse=True,
        )
        yield from (node.id for node in here[: max(0, num_here - asked[name])])
