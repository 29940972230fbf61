"""A test suite for estimators: properties that every estimator must have, those of mikit and your own.

from mikit.testing import check_estimator
check_estimator(MyEstimator())
"""

from mikit.testing.contract import ContractError, check_estimator, contract_checks

__all__ = ["ContractError", "check_estimator", "contract_checks"]
