"""The child process of the engine `ndt7`: M-Lab's protocol over the connections, the loop and the statistic of `http_child`."""
