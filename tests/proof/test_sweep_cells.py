"""How the cells of a sweep are counted and cut into parts."""

from collections import Counter

import pytest

from everycent.proof.sweep.cells import FAULTS, PART, Boundary, Cell, cells_of, parts_of

STEPS = ("order.open_order", "inventory.reserve_stock", "payment.authorise")
POINTS = tuple(dict.fromkeys(point for fault in FAULTS for point in fault.points))
PLACES = [Boundary(point, step, nth) for nth in range(1, 13) for point in POINTS for step in STEPS]


def cells() -> list[Cell]:
    return [cell for outcome in ("card", "declined") for cell in cells_of(outcome, PLACES, FAULTS)]


@pytest.mark.requirement("I4")
def test_every_cell_is_in_one_part_and_none_is_left_out() -> None:
    """Red when: a part is cut off (`group[number:count]`)."""
    swept = Counter(cell for part in parts_of(cells()) for cell in part)
    assert swept == Counter(cells())


def test_a_part_is_no_longer_than_it_may_be_and_its_waves_have_one_fault() -> None:
    """Red when: the faults of waves share a part: one deed strikes a whole wave."""
    parts = parts_of(cells())
    assert len(parts) > len([fault for fault in FAULTS if fault.wave])
    for part in parts:
        assert len(part) <= PART
        faults = {cell.fault.name for cell in part}
        assert len(faults) == 1 or not any(cell.fault.wave for cell in part)


def test_workers_are_killed_service_by_service() -> None:
    [part] = [p for p in parts_of(cells()) if p[0].fault.name == "worker killed"]
    services = [cell.boundary.step.partition(".")[0] for cell in part]
    assert services == sorted(services)


def test_every_fault_is_put_where_it_can_happen_and_nowhere_else() -> None:
    """Red when: a fault is left out of a point that it names."""
    counted = Counter((cell.fault.name, cell.boundary.point) for cell in cells())
    assert set(counted) == {(fault.name, point) for fault in FAULTS for point in fault.points}
    assert set(counted.values()) == {2 * 12 * len(STEPS)}
