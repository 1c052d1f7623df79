"""Derivatives of formulas against finite differences."""

import numpy as np
import pytest

from scaling.laws import LAWS, Law, Parameter
from scaling.laws.base.columns import from_size_and_tokens
from scaling.laws.base.law import VANISHED

COLUMNS = from_size_and_tokens(np.geomspace(1e7, 1e9, 7), np.geomspace(1e9, 5e9, 7)) | {
    "loss": np.linspace(2.0, 5.0, 7),
    "bits": np.array([1.0, 2, 4, 6, 8, 3, 2]),
    "activation_bits": np.array([16.0, 2, 4, 8, 8, 3, 4]),
    "qat_tokens": np.geomspace(3e8, 1e9, 7),
    "fp_tokens": np.geomspace(2e9, 5e9, 7),
    "batch_tokens": np.full(7, 1e5),
}


def numerical(law, solver, index, step=1e-6):
    up, down = solver.copy(), solver.copy()
    up[index] += step
    down[index] -= step
    return (law.value(law.from_solver(up[None]), COLUMNS) - law.value(law.from_solver(down[None]), COLUMNS))[0] / (2 * step)


@pytest.mark.parametrize("name", LAWS)
def test_a_laws_jacobian_is_that_of_its_formula(name):
    law = LAWS[name]
    theta = np.array([law.truth[key] for key in law.names]) * np.linspace(0.9, 1.1, len(law.names))
    solver = law.to_solver(theta)
    free = tuple(range(len(law.names)))
    value, jacobian = law.value_and_jacobian(solver[None], COLUMNS, free)
    np.testing.assert_allclose(value, law.value(theta[None], COLUMNS), rtol=1e-13)
    for index in free:
        np.testing.assert_allclose(jacobian[0, index], numerical(law, solver, index), rtol=2e-5, atol=1e-9)


def test_every_operation_of_a_formula():
    def formula(parameters, *, p, q, r):
        x = parameters / 1e9
        first = np.sqrt(p * x) + np.log(q + x) * np.tanh(r * x) - 2.0 / (p + x) + np.expm1(-q * x) + np.log1p(p * x)
        second = (
            (p + x) ** 2
            + 3.0**r
            + x**q
            + (p * x) ** r
            + np.exp2(r)
            - np.square(q)
            + np.log2(p)
            + (1.0 - p) / q
            + np.add(p, 1.0)
        )
        return first + second - (-q) * r + 5

    law = Law(name="all", formula=formula, parameters={name: Parameter(starts=(1.0,)) for name in "pqr"})
    solver = np.array([0.7, 1.3, 0.4])
    value, jacobian = law.value_and_jacobian(solver[None], COLUMNS, (0, 1, 2))
    np.testing.assert_allclose(value, law.value(solver[None], COLUMNS))
    for index in range(3):
        np.testing.assert_allclose(jacobian[0, index], numerical(law, solver, index), rtol=1e-6)


def test_a_function_without_a_derivative_is_named():
    law = Law(name="bad", formula=lambda tokens, *, p: np.floor(p * tokens), parameters={"p": Parameter(starts=(1.0,))})
    with pytest.raises(TypeError, match=r"cannot use numpy\.floor; it has exp, "):
        law.value_and_jacobian(np.array([[1.0]]), COLUMNS, (0,))


def test_fixed_parameters_have_no_derivative_and_columns_are_the_positional_arguments():
    law = LAWS["chinchilla"]
    assert law.columns == ("parameters", "tokens")
    theta = np.array([[law.truth[key] for key in law.names]])
    _, jacobian = law.value_and_jacobian(law.to_solver(theta), COLUMNS, (0, 3))
    assert jacobian.shape == (1, 2, 7)


def test_logarithms_end_where_a_number_is_nothing():
    assert Parameter(starts=(1.0,), log=True).solver_bounds == pytest.approx((np.log(VANISHED), -np.log(VANISHED)))
    assert Parameter(starts=(1.0,), high=2.0).solver_bounds == (0.0, 2.0)
