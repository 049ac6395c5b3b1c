"""The figure of who holds what shows the numbers that it was given."""

import numpy as np
import pandas as pd
import pytest

from fedact.reports.run.partition_figure import MOST_BARS, MOST_COLUMNS, partition_figure
from fedact.reports.style import png


def held(clients: int, classes: int, seed: int = 0) -> pd.DataFrame:
    counts = np.random.default_rng(seed).integers(0, 9, (clients, classes))
    counts[:, -1] += 1
    client, label = np.nonzero(counts)
    return pd.DataFrame({"seed": seed, "client": client, "label": 2 * label, "examples": counts[client, label]})


@pytest.mark.parametrize("clients", [1, 4, 20, MOST_BARS])
@pytest.mark.parametrize("classes", [1, 2, 10])
def test_few_clients_have_a_bar_each_with_a_piece_for_each_class(clients, classes):
    partition = held(clients, classes)
    (axes,) = partition_figure(partition).axes
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in axes.containers}
    table = partition.pivot_table("examples", "client", "label", "sum", fill_value=0)
    assert heights == {str(label): table[label].tolist() for label in table}
    tops = [bar.get_y() + bar.get_height() for bar in axes.containers[-1]]
    assert tops == partition.groupby("client")["examples"].sum().tolist()


def test_classes_are_called_by_their_names_and_sources_by_their_numbers():
    partition, names = held(4, 3), ["10", "no", "20", "no", "a $class$"]
    (axes,) = partition_figure(partition, "class", names).axes
    assert [bars.get_label() for bars in axes.containers] == ["10", "20", "a \\$class\\$"]
    for figure in (partition_figure(partition, "source", names), partition_figure(partition, "class", names[:4])):
        assert [bars.get_label() for bars in figure.axes[0].containers] == ["0", "2", "4"]


@pytest.mark.parametrize(("clients", "classes"), [(4, 100), (20, 11), (MOST_BARS + 1, 2), (100, 10), (MOST_COLUMNS, 100)])
def test_more_of_them_have_a_column_each_and_what_is_not_held_is_blank(clients, classes):
    partition = held(clients, classes)
    top, below, _ = partition_figure(partition).axes
    assert [bar.get_height() for bar in top.patches] == partition.groupby("client")["examples"].sum().tolist()
    shown = below.images[0].get_array()
    table = partition.pivot_table("examples", "label", "client", "sum", fill_value=0).to_numpy()
    assert np.array_equal(shown.filled(0), table)
    assert np.array_equal(np.ma.getmaskarray(shown), table == 0)


@pytest.mark.parametrize("classes", [1, 2, 10, 100])
def test_of_very_many_clients_each_is_counted_once_by_size_and_by_classes(classes):
    partition = held(MOST_COLUMNS + 1, classes)
    for axes, expected in zip(partition_figure(partition).axes, ("sum", "count"), strict=True):
        figures = partition.groupby("client")["examples"].agg(expected)
        edges = np.array([bar.get_x() for bar in axes.patches] + [axes.patches[-1].get_x() + axes.patches[-1].get_width()])
        assert [bar.get_height() for bar in axes.patches] == np.histogram(figures, edges)[0].tolist()
        assert sum(bar.get_height() for bar in axes.patches) == MOST_COLUMNS + 1


def test_sizes_that_are_far_apart_are_all_in_the_picture():
    sizes = np.array([10] * 990 + [10**number for number in range(1, 6)] * 2)
    partition = pd.DataFrame({"seed": 0, "client": np.arange(1000), "label": 0, "examples": sizes})
    left, _ = partition_figure(partition).axes
    assert (left.get_xscale(), left.get_yscale()) == ("log", "log")
    assert sum(bar.get_height() for bar in left.patches) == 1000


def test_what_examples_are_dealt_by_is_said():
    figures = [partition_figure(held(clients, classes), "source") for clients, classes in ((4, 3), (4, 30), (500, 3))]
    assert figures[0].legends[0].get_title().get_text() == "source"
    assert figures[1].axes[1].get_ylabel() == "source"
    assert figures[2].axes[1].get_xlabel() == "sources of a client, of 3"


def test_of_several_seeds_the_first_is_drawn_and_the_title_says_so():
    both = pd.concat([held(4, 3, 7), held(4, 3, 8)])
    figure = partition_figure(both)
    assert "under seed 7, the first of 2" in figure.get_suptitle()
    tops = [bar.get_y() + bar.get_height() for bar in figure.axes[0].containers[-1]]
    assert tops == held(4, 3, 7).groupby("client")["examples"].sum().tolist()


@pytest.mark.parametrize("clients", [1, 4, 100, 1000])
def test_a_figure_can_be_kept(clients):
    assert png(partition_figure(held(clients, 12))).startswith(b"\x89PNG")
