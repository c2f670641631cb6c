-- A ledger as the version before balances left it: three claims, and no books.
BEGIN TRANSACTION;
CREATE TABLE claims (id INTEGER PRIMARY KEY AUTOINCREMENT, payment_id TEXT NOT NULL UNIQUE, state TEXT NOT NULL, fingerprint BLOB NOT NULL, credential BLOB NOT NULL, resource TEXT NOT NULL, network TEXT NOT NULL, asset TEXT NOT NULL, pay_to TEXT NOT NULL, payer TEXT NOT NULL, amount INTEGER NOT NULL CHECK (amount > 0), valid_until INTEGER NOT NULL, created_at INTEGER NOT NULL, deadline INTEGER NOT NULL, confirmations INTEGER NOT NULL, owner TEXT NOT NULL, lease_until INTEGER NOT NULL, attempts INTEGER NOT NULL, reference TEXT NOT NULL, intent BLOB NOT NULL, wallet TEXT NOT NULL, nonce INTEGER NOT NULL, block INTEGER NOT NULL, block_hash TEXT NOT NULL, log_index INTEGER NOT NULL, final INTEGER NOT NULL, settled_at INTEGER NOT NULL, served_at INTEGER NOT NULL, next_check INTEGER NOT NULL, status INTEGER NOT NULL, headers BLOB NOT NULL, body BLOB, kept_until INTEGER NOT NULL, body_digest BLOB NOT NULL, reason TEXT NOT NULL, spent INTEGER NOT NULL);
INSERT INTO "claims" VALUES(1,'firstserved','served',X'66',X'63','r','eip155:8453','0xa','0xb','0xPayer',100,2000000000,1,2,0,'old',0,0,'0x1',X'726177','',-1,7,'',-1,1,0,0,0,200,X'',X'676F6F6473',100,X'','',0);
INSERT INTO "claims" VALUES(2,'firstsettled','settled',X'66',X'63','r','eip155:8453','0xa','0xb','0xPayer',100,2000000000,1,2,0,'old',0,0,'0x1',X'726177','',-1,7,'',-1,0,0,0,0,0,X'',NULL,0,X'','',0);
INSERT INTO "claims" VALUES(3,'firstclaimed','claimed',X'66',X'63','r','eip155:8453','0xa','0xb','0xPayer',100,2000000000,1,2,0,'old',0,0,'',X'','',-1,0,'',-1,0,0,0,0,0,X'',NULL,0,X'','',0);
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
INSERT INTO "meta" VALUES('secret',X'0102030405060708091011121314151617181920212223242526272829303132');
CREATE TABLE nonces (wallet TEXT NOT NULL, nonce INTEGER NOT NULL, holder TEXT NOT NULL, free INTEGER NOT NULL, PRIMARY KEY (wallet, nonce)) WITHOUT ROWID;
CREATE INDEX claims_open ON claims (payer) WHERE state IN ('claimed','sent','unknown');
CREATE INDEX claims_watched ON claims (next_check) WHERE final = 0 AND state <> 'failed';
CREATE INDEX claims_unserved ON claims (deadline) WHERE state = 'settled';
CREATE INDEX claims_kept ON claims (kept_until) WHERE body IS NOT NULL;
CREATE INDEX claims_forgotten ON claims (valid_until);
COMMIT;
