"""The child process of the engine `http`: one thread, non-blocking sockets, a loop of its own.

What a connection does is written as a generator (`Steps`) that yields what it waits for; the loop (`tasks`) goes on with it then.
"""
