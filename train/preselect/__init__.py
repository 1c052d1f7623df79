"""Predictive data selection: keep the documents whose loss ranks models as their ability does (PreSelect)."""

from train.preselect.strength import predictive_strength

__all__ = ["predictive_strength"]
