"""A unix datagram socket as systemd listens on: prints each message, its lines joined by a space."""
import os, socket, sys

listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.bind(sys.argv[1])
print("ready", flush=True)
while True:
    message, ancillary, _, _ = listener.recvmsg(4096, 256)
    # With BARRIER=1 systemd-notify sends a descriptor, and waits until that is closed.
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            for at in range(0, len(data), 4):
                os.close(int.from_bytes(data[at : at + 4], sys.byteorder))
    if message != b"BARRIER=1":
        print(message.decode().strip().replace("\n", " "), flush=True)
