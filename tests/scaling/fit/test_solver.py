"""The batched solver against scipy, closed forms, and itself."""

import numpy as np
import pytest
from scipy.optimize import curve_fit, minimize
from scipy.special import huber

from scaling.fit.solver import HUBER_DELTA, Objective, solve
from scaling.laws import LAWS, Law, Parameter
from tests.support.scaling import LINE, X, Y, line, simulated


def columns_and_target(name, seed=0):
    frame, law = simulated(name, seed=seed), LAWS[name]
    return law, {key: frame[key].to_numpy() for key in law.columns}, frame[law.target].to_numpy()


def test_least_squares_of_a_line_is_the_normal_equations_answer():
    weights = np.linspace(0.5, 2.0, 12)
    solutions = solve(LINE, Objective.of(LINE, None), X, Y, np.zeros((1, 2)), weights=weights)
    root = np.sqrt(weights)
    design = np.stack([np.ones(12), X["tokens"]], axis=1)
    exact = np.linalg.lstsq(design * root[:, None], Y * root, rcond=None)[0]
    np.testing.assert_allclose(solutions.solver[0], exact, rtol=1e-9)
    assert solutions.converged.all()


def test_the_objective_is_the_sum_of_hubers_loss_of_logarithms():
    law, columns, target = columns_and_target("chinchilla")
    theta = np.array([[1.7, 400.0, 2000.0, 0.34, 0.36]])
    solutions = solve(law, Objective.of(law, None), columns, target, law.to_solver(theta), fixed=frozenset(law.names))
    predicted = 1.7 + 400.0 * columns["parameters"] ** -0.34 + 2000.0 * columns["tokens"] ** -0.36
    assert solutions.objective[0] == pytest.approx(huber(HUBER_DELTA, np.log(predicted) - np.log(target)).sum(), rel=1e-12)


def test_huber_finds_what_a_general_minimiser_polishes_no_further():
    law, columns, target = columns_and_target("chinchilla")
    objective = Objective.of(law, None)
    solutions = solve(law, objective, columns, target, law.to_solver(law.starting_points(0)))
    best = solutions.solver[solutions.objective.argmin()]

    def value(solver):
        predicted = law.value(law.from_solver(solver[None]), columns)[0]
        return huber(HUBER_DELTA, np.log(predicted / target)).sum()

    for method in ("Nelder-Mead", "BFGS"):
        polished = minimize(value, best, method=method, options={"maxiter": 4000})
        assert polished.fun >= solutions.objective.min() * (1 - 1e-8)
    from_truth = minimize(
        value, law.to_solver(np.array(list(law.truth.values()))), method="Nelder-Mead", options={"maxiter": 8000}
    )
    assert from_truth.fun >= solutions.objective.min() * (1 - 1e-8)


def test_least_squares_is_curve_fits_answer():
    law, columns, target = columns_and_target("over-training")
    solutions = solve(law, Objective.of(law, None), columns, target, law.to_solver(law.starting_points(0)))
    theta, _ = curve_fit(
        lambda _, *theta: law.value(np.array([theta]), columns)[0], np.zeros(len(target)), target, p0=list(law.truth.values())
    )
    np.testing.assert_allclose(law.from_solver(solutions.solver[solutions.objective.argmin()]), theta, rtol=1e-4)


@pytest.mark.parametrize("name", ["chinchilla", "over-training", "downstream"])
def test_nearly_all_starts_reach_one_optimum_and_none_a_better_one(name):
    law, columns, target = columns_and_target(name, seed=1)
    solutions = solve(law, Objective.of(law, None), columns, target, law.to_solver(law.starting_points(0)))
    assert np.mean(solutions.objective < solutions.objective.min() * (1 + 1e-6)) > 0.6


def test_a_weight_of_two_is_a_run_that_stands_there_twice():
    law, columns, target = columns_and_target("chinchilla")
    weights = np.ones(len(target))
    weights[:5] = 2.0
    start = law.to_solver(np.array([list(law.truth.values())]))
    weighted = solve(law, Objective.of(law, None), columns, target, start, weights=weights)
    twice = {key: np.concatenate([value, value[:5]]) for key, value in columns.items()}
    repeated = solve(law, Objective.of(law, None), twice, np.concatenate([target, target[:5]]), start)
    np.testing.assert_allclose(weighted.solver, repeated.solver, rtol=1e-6)


def test_problems_do_not_see_each_other():
    """Alone, in a batch, in another order, in another chunk: the same digits."""
    law, columns, target = columns_and_target("chinchilla")
    objective, random = Objective.of(law, None), np.random.default_rng(0)
    weights = random.multinomial(len(target), np.full(len(target), 1 / len(target)), size=40).astype(float)
    starts = np.repeat(law.to_solver(np.array([list(law.truth.values())])), 40, axis=0)
    together = solve(law, objective, columns, target, starts, weights=weights)
    backwards = solve(law, objective, columns, target, starts, weights=weights[::-1])
    np.testing.assert_allclose(together.solver, backwards.solver[::-1], rtol=1e-10)
    alone = solve(law, objective, columns, target, starts[:1], weights=weights[:1])
    np.testing.assert_allclose(together.solver[0], alone.solver[0], rtol=1e-10)


def test_a_warm_bootstrap_is_the_full_multi_start():
    law, columns, target = columns_and_target("chinchilla")
    objective = Objective.of(law, None)
    starts = law.to_solver(law.starting_points(0))
    first = solve(law, objective, columns, target, starts)
    best = first.solver[first.objective.argmin()]
    weights = np.random.default_rng(1).multinomial(len(target), np.full(len(target), 1 / len(target)), size=4).astype(float)
    warm = solve(law, objective, columns, target, np.repeat(best[None], 4, axis=0), weights=weights)
    for row in range(4):
        full = solve(law, objective, columns, target, starts, weights=weights[row])
        assert warm.objective[row] <= full.objective.min() * (1 + 1e-6)


def test_bounds_hold_and_an_optimum_beyond_one_lies_on_it():
    bounded = Law(
        name="bounded",
        formula=line,
        parameters={"p": Parameter(starts=(0.0,), low=-np.inf), "q": Parameter(starts=(1.0,), low=-1.5, high=5.0)},
        objective="least-squares",
    )
    solutions = solve(bounded, Objective.of(bounded, None), X, Y, np.array([[0.0, 1.0], [3.0, 9.0]]))
    np.testing.assert_allclose(solutions.solver[:, 1], -1.5)
    np.testing.assert_allclose(solutions.solver[:, 0], np.mean(Y + 1.5 * X["tokens"]), rtol=1e-8)


def test_a_start_without_a_finite_objective_does_no_harm():
    law, columns, target = columns_and_target("chinchilla")
    starts = law.to_solver(np.array([[0.0, 1e39, 1e39, 0.0, 0.0], list(law.truth.values())]))
    solutions = solve(law, Objective.of(law, None), columns, target, starts)
    assert solutions.objective[1] < 0.01
    assert np.isfinite(solutions.solver[1]).all()
