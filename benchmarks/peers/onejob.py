"""One job as a command: `python -m benchmarks.peers.onejob module:function ITEM`; item and result are JSON.

It loads little, because every job of a runner of commands pays for it.
"""

import json
import sys
from importlib import import_module

if __name__ == "__main__":
    module, _, function = sys.argv[1].partition(":")
    print(json.dumps(getattr(import_module(module), function)(json.loads(sys.argv[2]))))
