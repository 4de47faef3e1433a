"""Videos, frame by frame (extra: video).

`formats.py`: containers and encoders; `reading.py`: what a clip is, and its frames; `encoding.py`: frames to packets;
`steady.py`: what a conditional network is told, averaged; `parts.py`: packets kept until all are there; `joining.py`:
parts, sound and subtitles to one file; `restoring.py`: all of them around a `Restorer`.
"""

from .formats import CODECS, CONTAINERS, is_video
from .restoring import Done, restore_video

__all__ = ["CODECS", "CONTAINERS", "Done", "is_video", "restore_video"]
