"""How well a document's loss predicts the ability of models.

Shape suffixes: D documents, M models.
"""

import numpy as np
import numpy.typing as npt

from common.errors import UserError

FloatArray = npt.NDArray[np.float64]


def predictive_strength(losses_DM: npt.ArrayLike, ability_M: npt.ArrayLike) -> FloatArray:
    """strength_D in [0, 1]: the share of model pairs of which the abler model has the strictly lower loss on the document.

    Equation 1 of Shum et al. 2025, "Predictive Data Selection" (arXiv 2503.00808). A tie in loss counts as 0. Only the order
    of the losses and of the abilities matters: losses may be in any unit that is the same for all models of a document.

    Raises:
        UserError: there are fewer than two models, two have the same ability, or a number is not finite.
    """
    losses_DM = np.asarray(losses_DM, dtype=np.float64)
    ability_M = np.asarray(ability_M, dtype=np.float64)
    if losses_DM.ndim != 2 or ability_M.shape != losses_DM.shape[1:]:
        raise UserError(f"losses of shape {losses_DM.shape} do not go with {ability_M.size} abilities: one column per model")
    models = len(ability_M)
    if models < 2:
        raise UserError(f"{models} model{'' if models == 1 else 's'} cannot be ranked: give two or more, better four to six")
    if not (np.isfinite(losses_DM).all() and np.isfinite(ability_M).all()):
        raise UserError("a loss or an ability is not a finite number")
    if len(np.unique(ability_M)) < models:
        raise UserError("two models have the same ability, so that their order is unknown: leave one out")
    from_weakest_DM = losses_DM[:, np.argsort(ability_M)]
    concordant_D = np.zeros(len(losses_DM), dtype=np.int64)
    for model in range(models - 1):
        concordant_D += (from_weakest_DM[:, model, None] > from_weakest_DM[:, model + 1 :]).sum(axis=1)
    return np.asarray(concordant_D / (models * (models - 1) / 2), dtype=np.float64)
