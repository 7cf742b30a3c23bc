from __future__ import annotations

import numpy as np
import pytest

from mlops import profile


def test_a_number_on_an_edge_lies_below_it_and_a_missing_one_in_the_last_bin() -> None:
    bins = {"edges": [0.0, 1.0, 2.5]}
    values = [-1.0, 0.0, 0.5, 1.0, 2.5, 2.6, np.inf, -np.inf, None]
    assert profile.positions(bins, values).tolist() == [0, 0, 1, 1, 2, 3, 3, 0, 4]
    assert profile.names(bins) == ["0", "1", "2", "3", "missing"]
    assert profile.count(bins, values).tolist() == [3, 2, 1, 2, 1]


def test_a_category_has_its_level_or_is_another_or_missing() -> None:
    bins = {"levels": ["red", "blue"]}
    assert profile.positions(bins, ["blue", "red", "violet", None]).tolist() == [1, 0, 2, 3]
    assert profile.count(bins, ["blue", None, "red"], np.array([5, 2, 3])).tolist() == [3, 5, 0, 2]


@pytest.mark.parametrize("bins", [{"edges": []}, {"levels": []}])
def test_without_edges_or_levels_there_is_a_bin_for_all(bins: dict[str, list[float]]) -> None:
    assert len(profile.count(bins, [])) == len(profile.names(bins))


def test_psi_is_that_of_the_shares_for_each_row_of_counts() -> None:
    expected, counts = np.array([0.5, 0.3, 0.2]), np.array([[50, 30, 20], [20, 30, 50], [100, 0, 0]])
    found = profile.psi(expected, counts)
    assert found[0] == pytest.approx(0)
    assert found[1] == pytest.approx((0.2 - 0.5) * np.log(0.2 / 0.5) + (0.5 - 0.2) * np.log(0.5 / 0.2))
    least = 1e-4
    assert found[2] == pytest.approx(
        0.5 * np.log(2) + (least - 0.3) * np.log(least / 0.3) + (least - 0.2) * np.log(least / 0.2)
    )
    assert np.isnan(profile.psi(expected, np.zeros(3)))
