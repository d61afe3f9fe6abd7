"""A rank does not outlive the agent of torchrun that started it.

Ranks live in sessions of their own and need the agent no more once they have met. Without this, those of an agent that
was killed (by the kernel when memory is short, by a person) train on, and write to the same run folder as those of the
agent that is started in its place.
"""

import ctypes
import os
import signal
import socket
import sys

from mindllm_engine.errors import MindLLMError

PR_SET_PDEATHSIG = 1  # prctl.h
SECONDS_TO_CONNECT = 10.0


def end_with_launcher() -> None:
    """Have the kernel kill this process when the agent that started it ends. Does nothing without torchrun, and on
    systems other than Linux.

    Raises:
        MindLLMError: the agent has gone already.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    # It may have ended while this process was starting. An agent holds the store in which ranks meet.
    address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    try:
        socket.create_connection(address, SECONDS_TO_CONNECT).close()
    except ConnectionRefusedError as error:
        raise MindLLMError(
            f"rank {os.environ['RANK']}: the agent of torchrun that holds the store at {address[0]}:{address[1]} has "
            "ended; start the run again"
        ) from error
    except OSError:
        pass  # a slow network: whoever joins the ranks waits for it, and says what is wrong
