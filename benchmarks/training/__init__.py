"""End-to-end training, fastrnn beside torch.nn: quality and time, and what recurrent dropout and state clipping do to quality."""
