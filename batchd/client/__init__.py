"""The client's side: finds or starts the journal's supervisor, hands it batches, feeds and follows them.

Reading, encoding and drawing happen on this side; the supervisor moves bytes.
"""

from batchd.client.connection import Connection, SupervisorGone, connect, request, start_supervisor
from batchd.client.session import Session, batch_id, key_of

__all__ = ["Connection", "Session", "SupervisorGone", "batch_id", "connect", "key_of", "request", "start_supervisor"]
