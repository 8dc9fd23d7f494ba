"""Pictures: what is counted, marked and coloured, and on which scale."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import LineCollection, QuadMesh
from matplotlib.patches import StepPatch
from matplotlib.tri import TriContourSet

import bayesmerge as bm
from bayesmerge.previews import pictures as plots

THREE = ("a", "b", "c")
FIVE = ("a", "b", "c", "d", "e")
GRID = bm.simplex_grid(3, 0.1)
DIRECTIONS = [np.nanmax, np.nanmin]


@pytest.fixture(autouse=True)
def closed():
    settings = dict(plt.rcParams)
    yield
    assert dict(plt.rcParams) == settings
    plt.close("all")


def hill(weights, peak, height=0.9):
    return height - ((weights - np.asarray(peak)) ** 2).sum(1)


def surfaces():
    return {
        "isotropic": hill(GRID, [0.3, 0.3, 0.4], 0.8),
        "full": hill(GRID, [0.6, 0.2, 0.2]),
        "joint training": hill(GRID, [0.7, 0.2, 0.1], 1.1),
    }


def draw_and_read(axes):
    """Every text of the drawn figure that can be seen."""
    figure = np.ravel(np.asarray(axes, dtype=object))[0].figure
    figure.canvas.draw()
    return {text.get_text() for text in figure.findobj(plt.Text) if text.get_visible()}


def stars(ax):
    return [line.get_xydata()[0] for line in ax.lines if line.get_marker() == "*"]


def on_triangle(weighting):
    return weighting @ plots.CORNERS


def test_histogram_counts_on_shared_bins():
    values = surfaces()
    ax = plots.histogram(None, values, reference="joint training", bins=7, label="accuracy")
    steps = {p.get_label(): p for p in ax.patches if isinstance(p, StepPatch)}
    assert list(steps) == ["joint training", "isotropic", "full"]
    assert [p.get_fill() for p in steps.values()] == [True, False, False]
    edges = steps["full"].get_data().edges
    assert len(edges) == 8
    for name, patch in steps.items():
        np.testing.assert_array_equal(patch.get_data().edges, edges)
        np.testing.assert_array_equal(patch.get_data().values, np.histogram(values[name], edges)[0])
        assert patch.get_data().values.sum() == len(GRID)
    assert {"accuracy", "number of weightings"} <= draw_and_read(ax)


def test_outlines_differ_without_colour():
    ax = plots.histogram(None, surfaces())
    assert len({str(patch.get_linestyle()) for patch in ax.patches}) == 3


def test_histogram_counts_the_missing_and_compares_unequal_numbers_by_share():
    ax = plots.histogram(None, {"few": np.array([0.1, np.nan, 0.3, np.inf]), "many": np.ones(50)})
    few, many = (patch.get_data().values for patch in ax.patches)
    assert few.sum() == 0.5
    assert many.sum() == 1
    assert {"few (2 NaN)", "many", "share of weightings"} <= draw_and_read(ax)


@pytest.mark.parametrize("best", DIRECTIONS)
def test_curves_are_sorted_and_starred(best):
    weights = bm.simplex_grid(2, 0.1)[::-1]
    values = {"full": hill(weights, [0.3, 0.7]), "joint": hill(weights, [0.4, 0.6])}
    values["full"][2] = np.nan
    ax = plots.curves(
        None, weights, values, ("a", "b"), best is np.nanmax, reference="joint", label="accuracy"
    )
    line, dots = (next(x for x in ax.lines if x.get_label() == name) for name in values)
    np.testing.assert_array_equal(line.get_ydata(), values["full"][::-1])
    np.testing.assert_allclose(line.get_xdata(), np.linspace(0, 1, 11))
    assert line.get_linestyle() == "-"
    assert dots.get_linestyle() == "None"
    for star, surface in zip(stars(ax), values.values(), strict=True):
        row = np.flatnonzero(surface == best(surface))[0]
        np.testing.assert_allclose(star, [weights[row, 0], surface[row]])
    assert {"weight of a\n(the rest is b)", "accuracy", "best of each"} <= draw_and_read(ax)


def test_a_surface_of_nan_has_no_star():
    weights = bm.simplex_grid(2, 0.5)
    ax = plots.curves(None, weights, {"a": np.full(3, np.nan), "b": np.arange(3.0)}, ("a", "b"))
    assert len(stars(ax)) == 1


def test_pairs_are_the_edges_of_the_simplex():
    weights = np.vstack([bm.simplex_grid(4, 0.25), [0.5, 0.5, 0.5, 0], [0.25, 0.25, 0, 0]])
    values = {"full": weights @ np.array([1.0, 10, 100, 1000]), "joint": weights[:, 0]}
    tasks = FIVE[:4]
    axes = plots.pairs(None, weights, values, tasks, reference="joint", label="accuracy")
    assert len(axes) == 6
    x = np.linspace(0, 1, 5)
    for ax, (a, b) in zip(axes, itertools.combinations(range(4), 2), strict=True):
        assert ax.get_xlabel() == f"weight of {tasks[a]}\n(the rest is {tasks[b]})"
        line = next(line for line in ax.lines if line.get_label() == "full")
        np.testing.assert_allclose(line.get_xdata(), x)
        np.testing.assert_allclose(line.get_ydata(), x * 10.0**a + (1 - x) * 10.0**b)
        assert ax.get_ylim() == axes[0].get_ylim()
    assert axes[0].get_ylim()[1] > 1000
    assert {"full", "joint"} <= draw_and_read(axes)
    assert len(axes[0].figure.legends) == 1


def test_pairs_in_given_axes_of_chosen_tasks():
    weights = bm.simplex_grid(6, 0.5)
    _, given = plt.subplots(1, 3)
    values = {"m": weights[:, 5], "n": weights[:, 0]}
    axes = plots.pairs(given, weights, values, tuple("abcdef"), chosen="fbd")
    assert all(x is y for x, y in zip(axes, given, strict=True))
    assert [ax.get_xlabel()[10:11] for ax in axes] == ["f", "f", "b"]
    assert all(ax.get_legend() is None for ax in axes)
    assert axes[0].get_legend_handles_labels()[1] == ["m", "n"]
    assert len({ax.get_ylim() for ax in axes}) == 1


def test_pairs_refuses_what_it_cannot_draw():
    weights = bm.simplex_grid(6, 0.5)
    values = {"m": weights[:, 0]}
    with pytest.raises(ValueError, match=r"15 pairs.*`chosen`"):
        plots.pairs(None, weights, values, tuple("abcdef"))
    with pytest.raises(ValueError, match=r"names \['z'\]"):
        plots.pairs(None, weights, values, tuple("abcdef"), chosen="az")
    inside = np.random.default_rng(0).dirichlet(np.ones(3), size=20)
    with pytest.raises(ValueError, match=r"0 of the 20 weightings.*simplex_grid"):
        plots.pairs(None, inside, {"m": inside[:, 0]}, THREE)
    with pytest.raises(ValueError, match="1 axes, and this picture has 3 panels"):
        plots.pairs([plt.figure().subplots()], GRID, surfaces(), THREE)
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("best", DIRECTIONS)
def test_ternaries_share_one_scale_and_star_the_best(best):
    values = surfaces()
    values["full"][5] = np.nan
    axes = plots.ternaries(None, GRID, values, THREE, best is np.nanmax, reference="joint training")
    contours = [next(c for c in ax.collections if isinstance(c, TriContourSet)) for ax in axes]
    assert len({c.get_clim() for c in contours}) == 1
    pooled = np.concatenate(list(values.values()))
    assert contours[0].get_clim()[0] <= np.nanmin(pooled)
    assert contours[0].get_clim()[1] >= np.nanmax(pooled)
    assert len(axes[0].figure.axes) == 4
    truth = GRID[np.flatnonzero(values["joint training"] == best(values["joint training"]))[0]]
    for ax, (name, surface) in zip(axes, values.items(), strict=True):
        assert ax.get_title() == name
        row = np.flatnonzero(surface == best(surface))[0]
        np.testing.assert_allclose(stars(ax), [on_triangle(GRID[row])])
        diamonds = [line.get_xydata()[0] for line in ax.lines if line.get_marker() == "D"]
        expected = [] if name == "joint training" else [on_triangle(truth)]
        np.testing.assert_allclose(diamonds, expected)
    assert {*THREE, "best", "best of joint training"} <= draw_and_read(axes)


def test_levels_are_round_or_those_given():
    axes = plots.ternaries(None, GRID, {"m": 0.503 + 0.39 * GRID[:, 0]}, THREE, levels=8)
    levels = axes[0].collections[0].levels
    np.testing.assert_allclose(levels, np.arange(0.5, 0.91, 0.05))
    values = {"low": GRID[:, 0] / 2, "high": 2 * GRID[:, 0]}
    axes = plots.ternaries(None, GRID, values, THREE, levels=[0.0, 0.5, 1.0])
    assert [ax.collections[0].extend for ax in axes] == ["neither", "both"]
    assert len({ax.collections[0].get_clim() for ax in axes}) == 1


def test_ternaries_refuse_an_unknown_reference_and_nothing():
    with pytest.raises(ValueError, match="reference is 'exact'"):
        plots.ternaries(None, GRID, surfaces(), THREE, reference="exact")
    with pytest.raises(ValueError, match="at least one surface"):
        plots.ternaries(None, GRID, {}, THREE)
    with pytest.raises(ValueError, match="NaN at every weighting"):
        plots.ternaries(None, GRID, {"m": np.full(len(GRID), np.nan)}, THREE)


def test_long_names_do_not_run_into_each_other():
    tasks = ("Rotten Tomatoes", "Stanford Cars and SUN", "RESISC45, satellite images")
    axes = plots.ternaries(None, GRID, surfaces(), tasks, reference="full")
    axes[0].figure.canvas.draw()
    frame = axes[0].figure.bbox
    boxes = [text.get_window_extent() for ax in axes for text in (*ax.texts, ax.title)]
    assert all(frame.contains(*end) for box in boxes for end in (box.min, box.max))
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("best", DIRECTIONS)
def test_parallel_lines_end_at_the_metric_with_the_best_on_top(best):
    weights = bm.simplex_grid(5, 0.25)
    values = hill(weights, [0.5, 0.25, 0, 0.25, 0]) + 1e-3 * weights[:, 1]
    values[:2] = np.nan, np.inf
    ax = plots.parallel_coordinates(
        None, weights, values, FIVE, best is np.nanmax, top=3, label="accuracy"
    )
    rest, casing, top = (c for c in ax.collections if isinstance(c, LineCollection))
    known = np.sort(values[np.isfinite(values)])[:: 1 if best is np.nanmax else -1]
    np.testing.assert_array_equal(rest.get_array(), known[:-3])
    np.testing.assert_array_equal(top.get_array(), known[-3:])
    assert rest.get_zorder() < casing.get_zorder() < top.get_zorder()
    assert rest.get_clim() == top.get_clim() == (known.min(), known.max())
    last = top.get_segments()[-1]
    row = np.flatnonzero(values == known[-1])[0]
    np.testing.assert_allclose(last[:5, 1], weights[row])
    assert last[5, 1] == (1 if best is np.nanmax else 0)
    assert {*FIVE, "accuracy", "weight of the task"} <= draw_and_read(ax)


def test_fewer_weightings_than_the_best_asked_for():
    weights = bm.simplex_grid(4, 1.0)
    for top, drawn in ((9, [4, 4]), (0, [4, 0, 0])):
        ax = plots.parallel_coordinates(None, weights, weights[:, 0], FIVE[:4], top=top)
        lines = [c for c in ax.collections if isinstance(c, LineCollection)]
        assert [len(c.get_segments()) for c in lines] == drawn
        draw_and_read(ax)


@pytest.mark.parametrize("best", DIRECTIONS)
def test_slices_are_the_best_over_the_other_weights(best):
    weights = bm.simplex_grid(4, 0.25)
    values = np.random.default_rng(0).normal(size=len(weights))
    values[[3, 7]] = np.nan, -np.inf
    axes = plots.slices(None, weights, values, FIVE[:4], best is np.nanmax, label="accuracy")
    values[7] = np.nan
    places = np.linspace(0, 1, 5)
    row = np.flatnonzero(values == best(values))[0]
    for ax, (a, b) in zip(axes, itertools.combinations(range(4), 2), strict=True):
        mesh = next(c for c in ax.collections if isinstance(c, QuadMesh))
        assert mesh.get_clim() == (np.nanmin(values), np.nanmax(values))
        cells = np.ma.filled(mesh.get_array(), np.nan)
        for (i, y), (j, x) in itertools.product(enumerate(places), enumerate(places)):
            there = values[np.isclose(weights[:, a], x) & np.isclose(weights[:, b], y)]
            known = there[~np.isnan(there)]
            expected = best(known) if len(known) else np.nan
            np.testing.assert_equal(cells[i, j], expected)
        np.testing.assert_allclose(stars(ax), [weights[row, [a, b]]])
    assert {f"weight of\n{t}" for t in "abcd"} <= draw_and_read(axes)
    figure = axes[0].figure
    titles = [ax.get_ylabel() for ax in figure.findobj(plt.Axes)]
    assert titles.count("best accuracy\nover the other weights") == 1


def test_slices_refuse_too_many_tasks_and_take_a_choice():
    weights = bm.simplex_grid(9, 0.5)
    tasks = tuple("abcdefghi")
    with pytest.raises(ValueError, match=r"36 pairs.*`chosen`"):
        plots.slices(None, weights, weights[:, 0], tasks)
    _, given = plt.subplots()
    axes = plots.slices([given], weights, weights[:, 2], tasks, chosen="ca")
    assert axes == [given]
    assert (given.get_xlabel(), given.get_ylabel()) == ("weight of\nc", "weight of\na")


@pytest.mark.parametrize("best", DIRECTIONS)
def test_front_is_what_nothing_betters(best):
    points = np.random.default_rng(0).normal(size=(60, 2)).round(1)
    points[4, 1] = np.nan
    sign = 1 if best is np.nanmax else -1
    known = np.unique(points[~np.isnan(points).any(1)], axis=0)
    undominated = [
        p for p in known if not any((sign * q >= sign * p).all() and (q != p).any() for q in known)
    ]
    ax = plots.front(
        None,
        {"full": points, "joint": points},
        ("x", "y"),
        best is np.nanmax,
        reference="joint",
        zoom=True,
    )
    step = next(line for line in ax.lines if line.get_label() == "full")
    np.testing.assert_array_equal(step.get_xydata(), undominated)
    assert step.get_drawstyle() == ("steps-pre" if best is np.nanmax else "steps-post")
    left, right = ax.get_xlim()
    assert left < np.min(undominated, axis=0)[0] < np.max(undominated, axis=0)[0] < right
    assert {"x", "y", "full", "joint"} <= draw_and_read(ax)


def test_pictures_draw_in_given_axes_and_open_no_figure():
    figure, axes = plt.subplots(2, 2)
    one, two, three, four = axes.flat
    weights = bm.simplex_grid(2, 0.5)
    points = {"m": np.array([[0.0, 1.0], [1.0, 0.0]])}
    assert plots.histogram(one, surfaces()) is one
    assert plots.curves(two, weights, {"m": weights[:, 0]}, ("a", "b")) is two
    assert plots.parallel_coordinates(three, GRID, GRID[:, 0], THREE) is three
    assert plots.front(four, points, ("x", "y")) is four
    _, row = plt.subplots(1, 3)
    assert plots.ternaries(row, GRID, surfaces(), THREE) == list(row)
    assert plt.get_fignums() == [figure.number, figure.number + 1]
