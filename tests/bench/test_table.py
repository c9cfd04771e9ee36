import pytest

from bench import plots
from bench.catalog import NAMES, ROWS, TANDEM, TANDEM_LOCAL, TANDEM_PD, Part
from bench.processes import SystemFailed
from bench.report import add_differences, table, to_json
from bench.row import Goal, Results, Row
from bench.run import measure_parts, with_needs


def results() -> Results:
    made = Results()
    for one, scheduler in ((40.0, 0.9), (60.0, 0.7), (50.0, 0.8)):
        made.add(TANDEM, {"one": one, "scheduler": scheduler})
    made.add("vllm-pd", {"one": 26.0})
    return made


def lines(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]


def test_every_row_has_a_name_of_its_own() -> None:
    assert len(set(NAMES)) == len(ROWS)


def test_the_table_has_medians_and_leaves_cells_of_absent_peers_empty() -> None:
    head, _, one, scheduler = lines(table(results(), NAMES))

    assert head == ["row", "unit", "goal", "met", TANDEM, "vllm-pd"]
    assert one == ["one stream", "tok/s", ">= 2x vllm-pd; >= 0.85x vllm", "no (1.92x);", "50 (40-60)", "26"]
    assert scheduler[2:] == ["<= 1", "yes", "0.8 (0.7-0.9)", ""]


def test_a_system_that_failed_says_so_in_its_column() -> None:
    made = results()
    made.fail("vllm", "did not start: see vllm.log")
    made.fail("vllm-pd", "failed: 500: see logs")

    head, _, one, _, failed = lines(table(made, NAMES))

    assert head[4:] == [TANDEM, "vllm-pd", "vllm"]
    assert one[3:] == ["no (1.92x);", "50 (40-60)", "26", ""]
    assert failed == ["failed", "", "", "", "", "failed: 500: see logs", "did not start: see vllm.log"]
    assert to_json(made, NAMES)["failures"] == {
        "vllm": "did not start: see vllm.log",
        "vllm-pd": "failed: 500: see logs",
    }


def test_rows_that_were_not_asked_for_are_left_out() -> None:
    assert [line[0] for line in lines(table(results(), ["one"]))[2:]] == ["one stream"]


@pytest.mark.parametrize(
    ("goal", "value", "answer"),
    [
        (Goal(1, is_most=True), 1.0, "yes"),
        (Goal(1, is_most=True), 1.1, "no"),
        (Goal(20), 19.0, "no"),
        (Goal(2, peer="p"), 20.0, "yes (2.00x)"),
        (Goal(0.5, True, "p"), 5.1, "no (0.51x)"),
        (Goal(2, peer="away"), 20.0, ""),
    ],
)
def test_goals_are_limits_or_multiples_of_a_peer(goal: Goal, value: float, answer: str) -> None:
    assert goal.answer(value, {"p": 10.0}) == answer


def test_what_disaggregation_costs_follows_from_both_systems() -> None:
    made = results()
    made.add(TANDEM_PD, {"short_ttft": 108.0, "prefill_ttft": 1020.0})
    add_differences(made)
    assert made.median(TANDEM, "pd_cost_short") is None

    made.add(TANDEM_LOCAL, {"short_ttft": 100.0, "prefill_ttft": 1000.0})
    add_differences(made)

    assert made.median(TANDEM, "pd_cost_short") == pytest.approx(8.0)
    assert made.median(TANDEM, "pd_cost_long") == pytest.approx(2.0)


def test_the_visible_share_of_the_transfer_is_the_wait_over_the_time_to_the_first_token() -> None:
    made = results()
    made.add(TANDEM, {"kv_wait": 8.5, "prefill_ttft": 3400.0})

    add_differences(made)

    assert made.median(TANDEM, "kv_wait_share") == pytest.approx(0.25)
    assert lines(table(made, ["kv_wait_share"]))[2][1:5] == ["%", "<= 1", "yes", "0.25"]


def test_a_difference_needs_the_rows_that_it_is_computed_from() -> None:
    assert with_needs(["pd_cost_short"]) == {
        (TANDEM, "pd_cost_short"),
        (TANDEM_PD, "short_ttft"),
        (TANDEM_LOCAL, "short_ttft"),
    }


def test_parts_are_measured_of_each_system_and_one_that_fails_does_not_end_the_run() -> None:
    made, calls = Results(), []

    def part(system: str, error: str | None = None, row: str = "int4") -> Part:
        def measure() -> dict[str, float]:
            calls.append(system)
            if error is not None:
                raise SystemFailed(error)
            return {row: 7.0}

        return Part((Row(row, "a row", ""),), measure, system)

    measure_parts(made, [part("not asked", row="other"), part("broken", "did not end"), part(TANDEM)], ["int4"])

    assert calls == ["broken", TANDEM]
    assert made.to_json() == {TANDEM: {"int4": [7.0]}}
    assert made.failures == {"broken": "did not end"}


def test_the_json_says_what_was_measured_where() -> None:
    written = to_json(results(), ["one"])

    assert [row["name"] for row in written["rows"]] == ["one"]
    assert written["values"]["vllm-pd"] == {"one": [26.0]}
    assert written["host"]["cores"]


def test_plots_are_drawn(tmp_path_factory: pytest.TempPathFactory) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("plots")

    drawn = plots.draw(results(), folder / "new")

    assert [path.name for path in drawn] == ["systems.svg", "goals.svg"]
    assert all(b"<svg" in path.read_bytes() for path in drawn)
