"""The tests, one folder a room."""

import os

# Before numpy or torch is imported, here and in the processes that tests start. On a busy machine, threads that wait
# for each other make no headway: seven tests of couplings took 40 s of CPU with two threads each, 10 s with one.
os.environ["OMP_NUM_THREADS"] = "1"
