"""Imported first in the server of loader processes: it leaves the group of the training process.

Launchers send SIGTERM and SIGUSR1 to the whole group. The training process saves then, for which it
may need more batches; its loader processes, which inherit the server's group, go on until it ends.
"""

import os

os.setpgid(0, 0)
