"""How every tool ends: a user's mistake is one line on stderr and exit code 2, never a traceback."""

import os
import sys
import time
from collections.abc import Callable

from mindllm_engine.errors import MindLLMError

USER_ERROR_EXIT_CODE = 2


def run_tool(main: Callable[[], None]) -> None:
    """Call `main` and turn a `MindLLMError` into `error: <one line>` and exit code 2.

    Under torchrun every rank meets the same mistake at the same moment. Rank 0 prints it; the others leave it a moment to
    do so (torchrun ends all ranks as soon as one has left).
    """
    try:
        main()
    except MindLLMError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(5)
        sys.exit(USER_ERROR_EXIT_CODE)
    except KeyboardInterrupt:
        sys.exit(130)
