<?php
// Says who asks.
header('Content-Type: application/json');
echo json_encode(['processedString' => $_SERVER['REMOTE_ADDR'], 'rawIspInfo' => '']);
