"""The programs of Refresher: one package per service, the command line and the embedded servers."""
