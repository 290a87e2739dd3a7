"""Start as the clients start it: `python -m batchd.supervisor FOLDER READY_FD`."""

import os
import signal
import sys
from pathlib import Path

from batchd.errors import BatchdError
from batchd.supervisor.loop import Supervisor
from batchd.supervisor.recovery import recover


def main() -> int:
    """Recover, tell the starter that clients may connect, run until nobody needs it. Return the exit code."""
    folder, ready_fd = Path(sys.argv[1]), int(sys.argv[2])
    os.umask(0o077)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        supervisor = Supervisor(recover(folder))
    except (BatchdError, TimeoutError, OSError) as error:
        os.write(ready_fd, f"{error}".encode())
        return 3
    os.write(ready_fd, b"ready")
    os.close(ready_fd)
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
