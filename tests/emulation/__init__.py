"""csrc/cuda compiled as host code and run on the CPU, where every access to memory is watched."""
