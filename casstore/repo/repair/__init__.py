"""Repairing a store: a plan first, then new objects, and the originals kept."""

from casstore.repo.repair.config import config_problem, write_config
from casstore.repo.repair.execute import Done, Repair
from casstore.repo.repair.plan import Action, Plan, Step, make_plan
from casstore.repo.repair.quarantine import discard, kept

__all__ = ["Action", "Done", "Plan", "Repair", "Step", "config_problem", "discard", "kept", "make_plan", "write_config"]
