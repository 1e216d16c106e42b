"""What needs a GPU, in stages: gpu_check.sh calls them one by one, each a process of its own."""
