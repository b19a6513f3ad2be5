"""Schedules, drawn as their docstrings draw them; and their properties at any size."""

from __future__ import annotations

import textwrap
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybench.parallel.pipeline.schedule import (
    SCHEDULES,
    Action,
    Deadlock,
    actions,
    bubble,
    gpipe,
    one_f_one_b,
    simulate,
    zero_bubble,
)

names = st.sampled_from(SCHEDULES)
sizes = {"stages": st.integers(1, 9), "chunks": st.integers(1, 17)}

DRAWN = {
    ("gpipe", 3, 4): """
        F0 F1 F2 F3 .. .. .. .. .. .. B0 B0 B1 B1 B2 B2 B3 B3
        .. F0 F1 F2 F3 .. .. .. B0 B0 B1 B1 B2 B2 B3 B3 .. ..
        .. .. F0 F1 F2 F3 B0 B0 B1 B1 B2 B2 B3 B3 .. .. .. ..
    """,
    ("1f1b", 3, 4): """
        F0 F1 F2 .. .. .. .. B0 B0 F3 B1 B1 .. B2 B2 .. B3 B3
        .. F0 F1 .. .. B0 B0 F2 B1 B1 F3 B2 B2 .. B3 B3 .. ..
        .. .. F0 B0 B0 F1 B1 B1 F2 B2 B2 F3 B3 B3 .. .. .. ..
    """,
    ("zero_bubble", 3, 4): """
        F0 F1 F2 .. .. B0 W0 F3 B1 W1 B2 W2 B3 W3
        .. F0 F1 .. B0 F2 B1 W0 F3 B2 W1 B3 W2 W3
        .. .. F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3
    """,
    ("gpipe", 2, 4): """
        F0 F1 F2 F3 .. .. .. B0 B0 B1 B1 B2 B2 B3 B3
        .. F0 F1 F2 F3 B0 B0 B1 B1 B2 B2 B3 B3 .. ..
    """,
    ("1f1b", 2, 4): """
        F0 F1 .. .. B0 B0 F2 B1 B1 F3 B2 B2 .. B3 B3
        .. F0 B0 B0 F1 B1 B1 F2 B2 B2 F3 B3 B3 .. ..
    """,
    ("zero_bubble", 2, 4): """
        F0 F1 .. B0 W0 F2 B1 W1 F3 B2 W2 B3 W3
        .. F0 B0 F1 B1 W0 F2 B2 W1 F3 B3 W2 W3
    """,
    ("1f1b", 4, 2): """
        F0 F1 .. .. .. .. .. .. .. .. B0 B0 .. B1 B1
        .. F0 F1 .. .. .. .. .. B0 B0 .. B1 B1 .. ..
        .. .. F0 F1 .. .. B0 B0 .. B1 B1 .. .. .. ..
        .. .. .. F0 B0 B0 F1 B1 B1 .. .. .. .. .. ..
    """,
    ("gpipe", 1, 2): "F0 F1 B0 B0 B1 B1",
    ("1f1b", 1, 2): "F0 B0 B0 F1 B1 B1",
    ("zero_bubble", 1, 2): "F0 B0 W0 F1 B1 W1",
}


def drawn(name: str, stages: int, chunks: int) -> str:
    return simulate(actions(name, stages, chunks), [1] * stages, [2] * stages).drawn()


def live_activations(table: list[list[Action]]) -> list[int]:
    """How many chunks' activations each stage holds at most: from F to B, or to W where it has."""
    most_of_each = []
    for row in table:
        last = "W" if any(action.kind == "W" for action in row) else "B"
        held = most = 0
        for action in row:
            held += (action.kind == "F") - (action.kind == last)
            most = max(most, held)
        most_of_each.append(most)
    return most_of_each


class TestDrawings:
    @pytest.mark.parametrize("case", DRAWN, ids=str)
    def test_a_schedule_runs_as_it_is_drawn(self, case):
        wanted = textwrap.dedent(DRAWN[case]).strip().splitlines()
        assert drawn(*case).splitlines() == wanted

    @pytest.mark.parametrize("make", [gpipe, one_f_one_b, zero_bubble])
    def test_docstrings_draw_three_stages_and_four_chunks(self, make):
        table = make(3, 4)
        picture = simulate(table, [1] * 3, [2] * 3).drawn()
        assert picture.count("F3") == 3
        said = [line.strip() for line in make.__doc__.splitlines()]
        for line in picture.splitlines():
            assert line in said

    def test_the_tables_themselves(self):
        def rows(table):
            return [" ".join(str(action) for action in row) for row in table]

        assert rows(gpipe(2, 3)) == ["F0 F1 F2 B0 B1 B2"] * 2
        assert rows(one_f_one_b(2, 3)) == ["F0 F1 B0 F2 B1 B2", "F0 B0 F1 B1 F2 B2"]
        assert rows(zero_bubble(2, 3)) == [
            "F0 F1 B0 W0 F2 B1 W1 B2 W2",
            "F0 B0 F1 B1 W0 F2 B2 W1 W2",
        ]


class TestEverySchedule:
    @given(name=names, **sizes)
    def test_a_stage_takes_every_chunk_once_each_way_in_ascending_order(self, name, stages, chunks):
        table = actions(name, stages, chunks)
        assert len(table) == stages
        for row in table:
            kinds = {action.kind for action in row}
            assert kinds == ({"F", "B", "W"} if name == "zero_bubble" else {"F", "B"})
            for kind in kinds:
                # Ascending: gradients add up as in one process, and messages need no tags.
                assert [a.chunk for a in row if a.kind == kind] == list(range(chunks))

    @given(name=names, **sizes)
    def test_backward_comes_after_forward(self, name, stages, chunks):
        for row in actions(name, stages, chunks):
            place = {action: number for number, action in enumerate(row)}
            for chunk in range(chunks):
                assert place[Action("F", chunk)] < place[Action("B", chunk)]
                if name == "zero_bubble":
                    assert place[Action("B", chunk)] < place[Action("W", chunk)]

    @given(
        name=names,
        **sizes,
        costs=st.lists(st.floats(0.1, 10), min_size=18, max_size=18),
        hop=st.floats(0, 5),
    )
    def test_none_deadlocks_and_everything_waits_for_what_it_needs(
        self, name, stages, chunks, costs, hop
    ):
        forward, backward = costs[:stages], costs[9 : 9 + stages]
        simulated = simulate(actions(name, stages, chunks), forward, backward, hop=hop)
        at = [{span.action: span for span in row} for row in simulated.stages]
        for stage, row in enumerate(simulated.stages):
            for one, other in pairwise(row):
                assert one.end <= other.start
            for (kind, chunk), start, _ in row:
                if kind == "F" and stage:
                    assert start >= at[stage - 1][Action("F", chunk)].end + hop
                if kind == "B" and stage < stages - 1:
                    assert start >= at[stage + 1][Action("B", chunk)].end + hop
        for row, one, other in zip(simulated.stages, forward, backward, strict=True):
            work = sum(span.end - span.start for span in row)
            assert work == pytest.approx(chunks * (one + other))
        assert 0 <= simulated.bubble < 1

    @given(**sizes)
    def test_live_activations(self, stages, chunks):
        assert live_activations(gpipe(stages, chunks)) == [chunks] * stages
        staircase = [min(stages - stage, chunks) for stage in range(stages)]
        assert live_activations(one_f_one_b(stages, chunks)) == staircase
        assert live_activations(zero_bubble(stages, chunks)) == [min(stages, chunks)] * stages


class TestBubble:
    @given(**sizes)
    def test_formulas(self, stages, chunks):
        idle = (stages - 1) / (chunks + stages - 1)
        assert bubble("gpipe", stages, chunks) == pytest.approx(idle)
        assert bubble("1f1b", stages, chunks) == pytest.approx(idle)
        actual = bubble("zero_bubble", stages, chunks)
        assert actual <= idle + 1e-12
        if chunks >= stages:
            assert actual == pytest.approx((stages - 1) / (3 * chunks + stages - 1))

    @given(stages=st.integers(1, 6), chunks=st.integers(1, 9), cost=st.floats(0.1, 9))
    def test_gpipe_of_equal_stages_takes_so_many_turns(self, stages, chunks, cost):
        simulated = simulate(gpipe(stages, chunks), [cost] * stages, [2 * cost] * stages)
        assert simulated.makespan == pytest.approx(3 * cost * (chunks + stages - 1))

    def test_an_unequal_stage_costs_what_it_costs(self):
        simulated = simulate(gpipe(2, 4), [1, 3], [2, 6])
        assert simulated.makespan == 1 + 4 * 9 + 2
        assert simulated.busy == [12, 36]
        assert simulated.bubble == pytest.approx(1 - 48 / (2 * 39))

    def test_the_weights_share_of_a_backward_pass(self):
        whole = simulate(zero_bubble(2, 2), [1, 1], [4, 4], weight=0.25)
        row = {str(span.action): span.end - span.start for span in whole.stages[0]}
        assert row == {"F0": 1, "F1": 1, "B0": 3, "B1": 3, "W0": 1, "W1": 1}

    def test_a_link_carries_one_message_at_a_time_each_way(self):
        simulated = simulate(gpipe(2, 3), [1, 1], [1, 1], hop=5)
        starts = {str(span.action): span.start for span in simulated.stages[1]}
        assert [starts[f"F{chunk}"] for chunk in range(3)] == [6, 11, 16]
        assert simulated.stages[0][-1].start == 18 + 3 * 5  # B0 is there at 18, and sent at once

    def test_a_coarser_unit_draws_fewer_cells(self):
        simulated = simulate(gpipe(1, 1), [0.5], [1.0])
        assert simulated.drawn(0.5) == "F0 B0 B0"
        assert simulated.drawn(0.25) == "F0 F0 B0 B0 B0 B0"


F0, F1, B0, B1 = Action("F", 0), Action("F", 1), Action("B", 0), Action("B", 1)


class TestDeadlock:
    @pytest.mark.parametrize(
        ("table", "words"),
        [
            ([[F0, B0], [F0]], "stage 0 waits forever before B0"),  # nobody sends B0
            ([[F1, B1], [F0, B0]], "stage 0 waits forever before B1"),
            ([[B0, F0], [F0, B0]], "stage 0 waits forever before B0"),
            ([[F0, F1, B1, B0], [F0, F1, B0]], "stage 0 waits forever before B1"),
            ([[F0, B0], [F1, B1]], "stage 0 waits forever before B0"),
        ],
    )
    def test_the_stage_and_its_action_are_named(self, table, words):
        with pytest.raises(Deadlock, match=words):
            simulate(table, [1, 1], [1, 1])

    def test_each_stage_waiting_for_the_other(self):
        first, last = [F0, B0, F1, B1], [F0, F1, B0, B1]
        with pytest.raises(ValueError, match="stage 0 waits forever before B0"):
            simulate([first, last], [1, 1], [1, 1])


class TestRefusals:
    def test_a_schedule_that_does_not_exist(self):
        with pytest.raises(ValueError, match=r"no schedule 'gpip'; .*gpipe, 1f1b, zero_bubble"):
            actions("gpip", 2, 2)

    @pytest.mark.parametrize(("stages", "chunks"), [(0, 1), (1, 0)])
    def test_sizes_below_one(self, stages, chunks):
        with pytest.raises(ValueError, match="is 0: it must be 1 or more"):
            actions("gpipe", stages, chunks)
