"""What is mended or overridden inside pynetdicom: all of it is here, and nobody else reaches into it.

    checkpoint        where an association's reactor waits      upper_layer   reading and sending PDUs, of both sides
    buffered_socket   bytes that were read ahead                acceptor      associations of those who call us
    server            connections of those who call us          requestor     associations by which we send

Each name that this rests on, the first version of pynetdicom that has it as it is used (all were read in 3.0.4), and
why. `tests/gateway/dimse/test_reactor.py` holds the table to pynetdicom and to the code; what of it is a fault of
pynetdicom's own is told in docs/upstream.md.

`ACSE._negotiate_as_acceptor`              1.0  who may come in is decided first, and what is supported for each peer
`ACSE.send_accept`                         1.0  established is said after the acceptance has left: a report that comes
                                                in between is dropped
`ApplicationEntity._servers`               1.2  `shutdown` of a server takes it out of this list, and raises without
`Association._is_paused`                   1.5  lowered late, and by the wrong thread: answers get lost, senders hang
`Association._reactor_checkpoint`          1.4  where the reactor waits; it has to say whether the reactor is there
`Association._run_reactor`                 1.4  a last A-ABORT must leave before the socket is closed
`Association._server`                      1.3  pynetdicom has the association's server close its connection
`Association.run_reactor`                  2.0  however it ends, its end is told of and the connection closed
`AssociationServer.get_request`            1.2  of processes that share a socket, who has fewer connections is faster
`AssociationServer.process_request`        1.2  connections wait at the door, without a thread
`AssociationServer.request_queue_size`     1.2  5 connections that are not yet accepted are few
`AssociationServer.server_bind`            1.2  the socket may be one that several processes share
`AssociationServer.server_close`           1.2  shuts the socket down, for all who share it
`AssociationServer.service_actions`        2.0  collects garbage every 60 rounds, in the middle of whatever is received
`AssociationServer.shutdown`               1.2  closes the door, too
`AssociationServer.verify_request`         1.2  (socketserver's) a flood is cut off before it costs threads
`AssociationSocket._is_connected`          1.2  whether there is anything to read from
`AssociationSocket.ready`                  1.2  asks the system about bytes that were read ahead; has no farewell
`AssociationSocket.recv`                   1.2  4 KiB at once, of any length, and without an end of its wait
`AssociationSocket.send`                   1.2  blocks for ever where a peer does not read
`DIMSEServiceProvider.receive_primitive`   1.2  raises on malformed messages, in a thread that dies of it; no limit
`DIMSEServiceProvider.send_msg`            1.0  fragments of messages of two threads interleave
`DULServiceProvider._decode_pdu`           1.2  its decoders raise on unknown items and sub-items, titles with NULs,
                                                version names of more than 16 characters, reserved reasons of A-ABORT:
                                                it is given what `gateway.dimse.negotiation` has written anew
`DULServiceProvider._idle_timer`           1.0  runs by the wall clock
`DULServiceProvider._is_transport_event`   1.0  polls; here the fast path waits and reads
`DULServiceProvider._kill_thread`          1.0  how its loop is told to end
`DULServiceProvider._recv_pdu`             2.0  PDUs that were read and not yet met by the state machine
`DULServiceProvider._send`                 2.0  an acceptance must send back both AE titles and the reserved bytes after
                                                them as they came (PS3.8 table 9-17): it sends its own reading, and
                                                zeros. Every A-ABORT of ours goes through here
`DULServiceProvider.kill_dul`              1.0  wakes the thread that waits on the socket
`DULServiceProvider.run_reactor`           2.0  an error in it leaves others waiting for its thread
`DULServiceProvider.send_pdu`              1.0  wakes the thread that waits on the socket; gathers a message's fragments
`PresentationContext._context_id`          1.0  what `context_id` sets
`PresentationContext.context_id`           1.0  raises on even numbers, which PS3.8 9.3.2.2 does not allow, and which
                                                DCMTK takes: nothing is ambiguous about them
`RequestHandler._create_association`       1.5  makes an `Association`, and nothing of ours
`Timer._end_time`                          1.2  what follows it is overridden
`Timer._start_time`                        1.0  what follows it is overridden
`Timer.remaining`                          1.2  runs by the wall clock
`Timer.start`                              1.0  runs by the wall clock
`Timer.stop`                               1.2  runs by the wall clock
`_config.STORE_SEND_CHUNKED_DATASET`       2.0  a module's constant, for the whole process: files leave byte by byte as
                                                they are, and never whole in memory
"""

from __future__ import annotations

from typing import cast

from pynetdicom import _config
from pynetdicom.presentation import PresentationContext

_config.STORE_SEND_CHUNKED_DATASET = True


def _set_context_id(context: PresentationContext, value: int | None) -> None:
    if value is not None and not 0 <= value <= 255:
        raise ValueError(f"a presentation context of the number {value}, where it is one byte")
    context._context_id = value


_public = cast(property, PresentationContext.__dict__["context_id"])
setattr(PresentationContext, "context_id", property(_public.fget, _set_context_id, None, _public.__doc__))  # noqa: B010
