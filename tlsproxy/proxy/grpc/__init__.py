"""The gRPC protocol: a frame relay between a client connection and its upstream connection.

A connection is composed of parts that own their state; an arrow is "uses"::

    GrpcConnection      lifecycle: deadlines, drain, another upstream, the end
     |
     +-> ClientFrames   frames of the client, in bounded turns
     |    +-> ClientStreams -> Call -> FollowedMessage | RebuiltMessage, ReducedAnswer
     +-> GrpcUpstream   frames of the upstream
     +-> SettingsExchange, Dialler
     +-> Former         at an upstream that has changed: a connection of its calls
     |
     +-> Relay          queues, windows and budgets, which all of them share
          +-> GrpcSession   the lifecycle as the parts see it

States of the connection (:data:`tlsproxy.proxy.grpc.states.CONNECTION_MOVES`); END leads from each to ENDED::

    OPEN --DRAIN--> DRAINING --LEAVE-----------> LEAVING --END--> ENDED
     |                  |                         ^  ^
     +------LOSE--------+--LOSE--> LOST --LEAVE---+  |
     +------LEAVE------------------------------------+

States of a call's stream (:data:`tlsproxy.proxy.grpc.states.STREAM_MOVES`); a closed one's call is forgotten::

    open --client ends---> request whole --upstream ends--> closed
     |                                                        ^
     +-----upstream ends-> response whole --client ends-------+

A call has its answer's progress besides: ``waiting`` for a decision, then ``opening`` is queued for the upstream,
``answered`` with the response's first fields, ``recorded`` with its audit line, which is written once.
"""
