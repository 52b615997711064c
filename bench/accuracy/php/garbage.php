<?php
// As many MiB of random bytes as ckSize asks for: 4 where it says nothing, 1024 at most.
$wanted = (int) ($_GET['ckSize'] ?? 4);
$piece = random_bytes(1048576);
header('Content-Type: application/octet-stream');
header('Cache-Control: no-store');
for ($sent = 0; $sent < min(max($wanted, 1), 1024); $sent++) {
    echo $piece;
    flush();
}
