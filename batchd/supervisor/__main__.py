"""Start as the clients start it: with FOLDER READY_FD [throw-away STDOUT_FD STDERR_FD]."""

import json
import os
import resource
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import lmdb

from batchd.edge import reserve, throwaway
from batchd.edge.folder import is_full
from batchd.errors import BatchdError, JournalError, JournalFull
from batchd.settings import LINGER_S, OWNER_WAIT_S, WORKERS_MAX
from batchd.supervisor.loop import Supervisor
from batchd.supervisor.recovery import recover
from batchd.worker.template import bear_no_mark


def main() -> int:
    """Recover, tell the starter that clients may connect, run until nobody needs it. Return the exit code."""
    folder, ready_fd = Path(sys.argv[1]), int(sys.argv[2])
    bear_no_mark()
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # Where it is ignored nobody learns how a child ended.
    _allow_descriptors()
    try:
        is_throwaway = bool(sys.argv[3:])
        echo = tuple(int(fd) for fd in sys.argv[4:])
        # Nobody but its process knows of a throw-away journal: when that goes, nobody else will come.
        supervisor = Supervisor(recover(folder), linger_s=0.0 if is_throwaway else LINGER_S, echo=echo)
    except (BatchdError, TimeoutError, OSError, lmdb.Error) as error:
        known = error if isinstance(error, BatchdError) else in_words(error, folder)
        with suppress(BrokenPipeError):
            os.write(ready_fd, json.dumps({"error": type(known).__name__, "message": str(known)}).encode())
        return 3
    if not is_throwaway:
        reserve.hold(folder)
    with suppress(BrokenPipeError):  # Its starter died meanwhile: it leaves in order, as soon as nobody comes.
        os.write(ready_fd, b"ready")
    os.close(ready_fd)
    code = supervisor.run()
    if is_throwaway and code and supervisor.is_missed:  # Another one is started, by those who go on, if any.
        supervisor.ground.lock.release()
        throwaway.remove_ownerless(folder, OWNER_WAIT_S)
    elif is_throwaway:
        with suppress(OSError):
            shutil.rmtree(folder.rename(f"{folder}.gone"), ignore_errors=True)  # Nobody is to see a part of it.
        supervisor.ground.recorder_path.unlink(missing_ok=True)
    return code


def in_words(error: Exception, folder: Path) -> BatchdError:
    """Return what an error of the system at the start means for the journal."""
    text = str(error)
    if is_full(error, folder):
        full = Path(error.filename).parent if isinstance(error, OSError) and error.filename else folder
        return JournalFull(f"the disk under {full} is full: free some space there, or use --journal ({text})")
    return JournalError(f"{folder} cannot be used: {text}")


def _allow_descriptors() -> None:
    """Let this process open what its workers take, as far as it may: the usual limit is good for 250 of them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 8 * WORKERS_MAX if hard == resource.RLIM_INFINITY else min(hard, 8 * WORKERS_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main())
