"""Who has lent slots to whom."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rlserve.pool.sharing.loans import Loans


def test_a_loan_and_its_return() -> None:
    loans = Loans()
    loans.note("lender", 6)
    loans.note("lender", 4)
    assert loans.num_lent("lender") == 0, "nobody has them yet"
    loans.note("borrower", 2)
    assert (loans.num_lent("lender"), loans.num_borrowed("borrower")) == (2, 2)
    loans.note("borrower", 1)
    loans.note("lender", 5)
    assert (loans.num_lent("lender"), loans.num_borrowed("borrower")) == (1, 1)
    loans.forget("borrower")
    assert loans.num_lent("lender") == 0
    loans.note("lender", 6)
    assert loans.num_lent("lender") == 0


def test_what_is_passed_on_is_the_first_lenders_still() -> None:
    loans = Loans()
    for run_id, count in (("lender", 4), ("lender", 2), ("first", 2), ("first", 0), ("second", 2)):
        loans.note(run_id, count)
    assert (loans.num_lent("lender"), loans.num_lent("first")) == (2, 0)
    assert (loans.num_borrowed("first"), loans.num_borrowed("second")) == (0, 2)


def test_what_a_lender_that_has_gone_had_lent_is_the_borrowers_own() -> None:
    loans = Loans()
    for run_id, count in (("lender", 4), ("lender", 2), ("borrower", 2)):
        loans.note(run_id, count)
    loans.forget("lender")
    assert loans.num_borrowed("borrower") == 0


def test_slots_that_leave_with_their_node_are_not_lent() -> None:
    loans = Loans()
    loans.note("run", 4)
    loans.lose("run", 2)
    loans.note("run", 2)
    loans.note("other", 2)
    assert (loans.num_lent("run"), loans.num_borrowed("other")) == (0, 0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 8) | st.none()), max_size=30))
def test_nobody_borrows_more_than_it_has_and_the_books_balance(changes: list[tuple[str, int | None]]) -> None:
    """``None`` is a run that goes."""
    loans, have = Loans(), dict.fromkeys("abc", 0)
    for run_id, count in changes:
        have[run_id] = count or 0
        if count is None:
            loans.forget(run_id)
        else:
            loans.note(run_id, count)
        assert sum(map(loans.num_lent, "abc")) == sum(map(loans.num_borrowed, "abc"))
        for each in "abc":
            assert 0 <= loans.num_borrowed(each) <= have[each]
            assert loans.num_lent(each) >= 0
