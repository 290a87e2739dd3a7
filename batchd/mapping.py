"""`batchd.map` and `batchd.starmap`: a function over a lazy input, results as a lazy iterator, memory bounded.

What a call means is settled here: its function, its batch, its options. What flows through it is in flow.py.
"""

import os
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, cast

from batchd.client.codedigest import code_digest
from batchd.client.connection import Note, request
from batchd.client.costing import Costing, CostOf, NoField, field_of
from batchd.client.reading import check_on_error
from batchd.client.session import Session, batch_id
from batchd.client.world import (
    library_folder,
    library_key,
    library_spec,
    name_of,
    pack_task,
    settle_known,
    warn,
)
from batchd.core.events import Options
from batchd.core.job import Allowances, JobState
from batchd.edge.gauges import cpus_usable, parse_workers
from batchd.errors import InputError, UsageError
from batchd.flow import AGAIN, Flow, Plan
from batchd.intake import Items, as_items
from batchd.units import continuing, job_memory, seconds_of
from batchd.view import SilentView, View
from batchd.worker.calls import ONE, STAR

T = TypeVar("T")
OnError = Literal["raise", "return", "skip"]
Key = Callable[[Any], Any] | str


def map(  # noqa: A001  (named after what it stands in for)
    fn: Callable[..., T],
    /,
    *iterables: Iterable[Any],
    workers: int | str = "auto",
    ordered: bool = True,
    retries: int = 0,
    timeout: float | str | None = None,
    on_error: OnError = "raise",
    journal: str | os.PathLike[str] | None = None,
    name: str | None = None,
    key: Key | None = None,
    cost: CostOf | None = None,
    progress: Any = "auto",
    buffersize: int | None = None,
    crashes_max: int = 3,
    memory_per_job: int | str | None = None,
    accept_code: bool = False,
) -> Generator[T, None, None]:
    """Return a lazy iterator over `fn(item)` for each item, or `fn(*items)` with several iterables.

    Nothing starts before the first result is asked for. Input is read as results are taken, at most `buffersize`
    items (131,072 by default) ahead of them, so an infinite input works. Results come in order, or as they are ready
    with `ordered=False`. `workers` is a number, a share of the machine ("50%") or "auto"; `timeout` is
    seconds a job, or a text such as "1m30s"; `memory_per_job` bytes, or a text such as "2G".

    With `journal` (a folder) or `name` the batch is durable: the same call again gives the results that are there and
    runs only what is missing or failed. `key`, a function of the item or the name of a field, gives each job an
    identity instead of its place in the input: only new and changed items run, and those that did not succeed. A
    changed item takes the place of its old job, which is not run again if it failed.

    `cost`, a function of the item or the name of a field, says what takes long: of what was read, jobs so costly that
    the end would be uneven start first, the others in their order. Any unit will do; None: it is not known.

    A job that fails raises JobFailed, JobCrashed, JobTimeout or JobOverMemory where its result would have been; with
    `on_error` "return" the error is given as a value, with "skip" it is left out. `progress` is "auto" (a live line
    on a terminal), True, False, a function that is called with a dict, or `tqdm.tqdm`.

    Raises UsageError, InputChanged when a durable batch was given other input before, and CodeChanged when `fn` is
    another (`accept_code=True` goes on with it).

    >>> list(map(abs, [3, -4], workers=1))
    [3, 4]
    """
    if not iterables:
        raise TypeError("map() must have at least one iterable.")
    is_star = len(iterables) > 1 or isinstance(fn, _Star)
    fn = fn.function if isinstance(fn, _Star) else fn
    items = zip(*iterables, strict=False) if len(iterables) > 1 else as_items(iterables[0])
    options = job_options(workers, retries, timeout, crashes_max, memory_per_job, keep_going=on_error != "raise")
    plan = Plan(
        ordered=ordered,
        on_error=on_error,
        key=key_function(key),
        window=buffersize,
        progress=progress,
        costing=costing_of(cost),
    )
    _check(fn, plan, is_durable=journal is not None or name is not None, key=key)
    return _results(fn, items, STAR if is_star else ONE, options, plan, journal, name, accept_code=accept_code)


def starmap(fn: Callable[..., T], iterable: Iterable[Iterable[Any]], /, **options: Any) -> Generator[T, None, None]:
    """Return a lazy iterator over `fn(*arguments)` for each tuple of arguments; `options` are those of `map`.

    >>> list(starmap(pow, [(2, 5), (3, 2)], workers=1))
    [32, 9]
    """
    return map(cast("Callable[..., T]", _Star(fn)), (tuple(arguments) for arguments in iterable), **options)


class _Star(NamedTuple):
    """Marks a function that is called with each item spread."""

    function: Callable[..., Any]


def key_function(key: Key | None) -> Callable[[Any], Any] | None:
    """Return the function that gives an item's key: a text names a field or an attribute.

    >>> key_function("id")({"id": 7})
    7
    """
    if key is None or callable(key):
        return key

    def field(item: Any) -> Any:
        try:
            return field_of(item, key)
        except NoField:
            raise InputError(f"it has no {key!r}, which key={key!r} asks for") from None

    return field


def costing_of(cost: CostOf | None) -> Costing | None:
    """Return what reads the costs of items, None where nobody asked for that."""
    return None if cost is None else Costing(cost, f"cost={cost!r}" if isinstance(cost, str) else "cost=")


def _check(fn: object, plan: Plan, *, is_durable: bool, key: object) -> None:
    if not callable(fn):
        raise TypeError(f"{type(fn).__name__} is not callable: map takes a function and what to call it with")
    check_on_error(plan.on_error)
    if plan.window is not None and plan.window < 1:
        raise ValueError("buffersize must be None or > 0")
    if key is not None and not is_durable:
        raise UsageError("key= says what was done before, and without journal= or name= nothing was")


def job_options(
    workers: int | str,
    retries: int,
    timeout: float | str | None,
    crashes_max: int,
    memory_per_job: int | str | None = None,
    *,
    keep_going: bool,
) -> Options:
    """Return what a call asks of the scheduler. Raises UsageError."""
    if retries < 0 or crashes_max < 1:
        raise UsageError("retries must be 0 or more, crashes_max 1 or more")
    return Options(
        workers=parse_workers(str(workers), cpus_usable()),
        allowances=Allowances(retries=retries, crashes_max=crashes_max),
        timeout_s=seconds_of("timeout", timeout),
        memory_bytes_max=job_memory("memory_per_job", memory_per_job),
        keep_going=keep_going,
    )


def _results(
    fn: Callable[..., T],
    items: Items,
    call: str,
    options: Options,
    plan: Plan,
    journal: str | os.PathLike[str] | None,
    name: str | None,
    *,
    accept_code: bool,
) -> Generator[T, None, None]:
    packed = pack_task(fn)
    folder, is_throwaway = library_folder(journal, name)
    digest = code_digest(fn)
    spec = library_spec(
        name or name_of(fn),
        is_named=name is not None,
        task=name_of(fn),
        call=call,
        kind="keyed" if plan.key else "iterable",
        digest=digest,
        is_throwaway=is_throwaway,
    )
    if is_throwaway:
        batch = batch_id(["map", os.urandom(16).hex()])
    else:
        batch = batch_id(["name", name] if name else ["map", getattr(fn, "__module__", ""), name_of(fn)])
    view = view_of(plan.progress, spec["name"])
    note = warn if isinstance(view, SilentView) else view.note
    is_known = (folder / "batches" / batch).exists()
    if is_known:
        _go_on(folder, batch, spec, view, note, accept_code=accept_code)
    session = Session(
        folder,
        batch,
        spec=spec,
        options=options,
        key_spec=library_key(packed),
        digest=digest,
        note=note,
        follows=True,
    )
    try:
        yield from Flow(session, items, plan, view, is_throwaway=is_throwaway).results()
    finally:
        session.close()
        view.close()


def _go_on(folder: Path, batch: str, spec: dict[str, Any], view: View, note: Note, *, accept_code: bool) -> None:
    """Find out whether the batch that is there is the one that is meant, and open its failures again."""
    facts = settle_known(folder, batch, spec, accept_code=accept_code)
    done = facts.count(JobState.SUCCEEDED)
    view.note(continuing(spec["name"], done, facts.size))
    is_keyed = spec["input"]["kind"] == "keyed"  # What is to run again, the input tells.
    again = [] if is_keyed else [int(state) for state in AGAIN if facts.count(state)]
    if again or facts.cancelled:
        request(folder, "reopen", note=note, batch=batch, states=again, if_idle=True)


def view_of(progress: Any, title: str) -> View:
    """Return what shows progress: see `map`. Raises UsageError."""
    from batchd.meter import make_meter  # noqa: PLC0415  (what draws is loaded when something is drawn)

    return make_meter(progress, title)
