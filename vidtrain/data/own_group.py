"""Imported first in the server of loader processes: no signal to a training reaches them.

Launchers send SIGTERM and SIGUSR1 to the whole group, and Slurm to every process of a job. The
training process saves then, for which it may need more batches; its loader processes, which inherit
what is set here, go on until it ends.
"""

import os
import signal

os.setpgid(0, 0)
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, signal.SIG_IGN)
