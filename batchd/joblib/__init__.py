"""batchd under joblib, and so under scikit-learn and everything else that calls `joblib.Parallel`.

Here is only the door: backend.py is what joblib talks to, shared.py how large arrays travel, inside.py what runs in
workers. The one idea: a `Parallel` call is jobs of a `batchd.Executor`, and everything that joblib promises of its
own process backend holds, except that a crash is told as what it was and costs no other call its workers.

joblib is not imported before it is asked for, so workers can be prepared before it is there.
"""

from typing import Any, Final

NAME: Final = "batchd"
"""What joblib knows the backend by."""


def register(*, make_default: bool = False) -> None:
    """Tell joblib of the backend "batchd"; with `make_default` it is used wherever none is named.

    Options of `batchd.Executor` are given where the backend is chosen: `journal`, `name`, `timeout` (seconds a job),
    `retries`, `crashes_max`, `memory_per_job`, `initializer`, `initargs`; also `idle_worker_timeout` (60 seconds).
    Without n_jobs all CPUs are used. With one of the options about jobs each call is a job of its own; without them
    joblib puts short calls together.

    Raises ImportError when joblib is not installed.

    >>> import joblib
    >>> register()
    >>> with joblib.parallel_config(backend="batchd", n_jobs=2):
    ...     joblib.Parallel()(joblib.delayed(pow)(n, 2) for n in range(5))
    [0, 1, 4, 9, 16]
    """
    import joblib  # noqa: PLC0415  (see above)

    joblib.register_parallel_backend(NAME, make_backend, make_default=make_default)


def make_backend(**options: Any) -> Any:
    """Return a backend, as joblib asks for it. Whoever registers it and makes none does not load it.

    >>> type(make_backend(retries=1)).__name__
    'BatchdBackend'
    """
    from batchd.joblib.backend import BatchdBackend  # noqa: PLC0415

    return BatchdBackend(**options)


def release_workers() -> None:
    """End the workers that are kept for the next call, without waiting for their idle time to pass.

    >>> release_workers()
    """
    from batchd.joblib.keeping import shelf  # noqa: PLC0415

    shelf().clear()
