"""scikit-learn through joblib: the same numbers as without workers."""

import os
from typing import Any

import pytest

joblib = pytest.importorskip("joblib", reason="joblib is not installed: pip install joblib")
pytest.importorskip("sklearn", reason="scikit-learn is not installed: pip install scikit-learn")
pytestmark = pytest.mark.usefixtures("registered")


@pytest.fixture(scope="module")
def data() -> Any:
    from sklearn.datasets import make_classification

    return make_classification(n_samples=240, n_features=8, random_state=7)


def workers() -> Any:
    return joblib.parallel_config(backend="batchd", n_jobs=2)


def compute(data: Any, n_jobs: int) -> tuple[list[float], list[float], dict[str, Any], list[float]]:
    """Score one model, search a grid with another, and fit a third that is parallel by itself."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.tree import DecisionTreeClassifier

    scores = cross_val_score(LogisticRegression(), *data, cv=4, n_jobs=n_jobs)
    grid = {"max_depth": [1, 2, 3], "min_samples_leaf": [1, 5]}
    search = GridSearchCV(DecisionTreeClassifier(random_state=7), grid, cv=3, n_jobs=n_jobs).fit(*data)
    forest = RandomForestClassifier(12, random_state=7, n_jobs=n_jobs).fit(*data)
    return (
        list(scores),
        list(search.cv_results_["mean_test_score"]),
        search.best_params_,
        list(forest.feature_importances_),
    )


@pytest.mark.slow
def test_scores_searches_and_forests_have_the_same_numbers(data: Any) -> None:
    alone = compute(data, n_jobs=1)
    with workers():
        assert compute(data, n_jobs=2) == alone


def test_the_fits_run_in_workers(data: Any) -> None:
    from sklearn.base import BaseEstimator
    from sklearn.model_selection import cross_validate

    class Watcher(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
        def fit(self, *_: Any) -> "Watcher":
            self.pid_ = os.getpid()
            return self

        def score(self, *_: Any) -> float:
            return 1.0

    with workers():
        found = cross_validate(Watcher(), *data, cv=4, return_estimator=True)
    assert len(found["estimator"]) == 4
    assert os.getpid() not in {each.pid_ for each in found["estimator"]}


def test_a_fit_that_fails_is_told_as_without_workers(data: Any) -> None:
    from sklearn.model_selection import cross_val_score
    from sklearn.tree import DecisionTreeClassifier

    with workers(), pytest.raises(ValueError, match="All the 5 fits failed"):
        cross_val_score(DecisionTreeClassifier(max_depth=-1), *data)
    with workers(), pytest.raises(ValueError, match="max_depth"):
        cross_val_score(DecisionTreeClassifier(max_depth=-1), *data, error_score="raise")
