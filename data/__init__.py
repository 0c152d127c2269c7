"""Images, videos, optical flow, rendered scenes and clip sets: everything that comes from or goes to a file."""
