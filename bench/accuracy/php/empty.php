<?php
// Takes what it is sent, and answers nothing.
header('Cache-Control: no-store');
header('Connection: keep-alive');
