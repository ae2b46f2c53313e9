// A Bitcoin Core node on regtest, with coins of a key that everyone knows.

import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { delimiter, join } from 'node:path';

import { directory, eventually, launch, ROOT } from './program.mjs';

/** `BITCOIND`, else `bitcoind` from the PATH, else the one that is shared beside the repository. */
function binary() {
    if (process.env.BITCOIND) return process.env.BITCOIND;
    const folders = [...(process.env.PATH ?? '').split(delimiter), join(ROOT, '../shared/bin')];
    return folders.map((folder) => join(folder, 'bitcoind')).find((file) => existsSync(file));
}

const BITCOIND = binary();

/** Why tests on a node are skipped; `false` when they are not. */
export const withoutNode = BITCOIND ? false : 'no bitcoind (BITCOIND, PATH, ../shared/bin)';

/** A key for regtest: its number is 1. */
const KEY = 'cMahea7zqjxrtgAbB7LSGbcQUr1uX1ojuat9jZodMN87JcbXMTcA';

function freePort() {
    return new Promise((done, fail) => {
        const server = createServer().on('error', fail);
        server.listen(0, '127.0.0.1', () => {
            const { port } = server.address();
            server.close(() => done(port));
        });
    });
}

export class Node {
    /** A node with blocks, and with coins for `payments` payments. */
    static async start(payments = 4) {
        // The port was free a moment ago; if another process has taken it since, the next one is tried.
        for (let attempt = 0; attempt < 5; attempt++) {
            const node = new Node(directory(), await freePort());
            if (await node.#isReady()) {
                await node.#prepare(payments);
                return node;
            }
        }
        throw new Error('bitcoind does not start');
    }

    constructor(home, port) {
        this.home = home;
        this.url = `http://127.0.0.1:${port}`;
        this.blocks = 0;
        this.child = launch(BITCOIND, [
            '-regtest', `-datadir=${home}`, `-rpcport=${port}`, '-rpcbind=127.0.0.1', '-rpcallowip=127.0.0.1',
            '-listen=0', '-connect=0', '-dnsseed=0', '-server=1', '-rpcthreads=4', '-dbcache=4', '-par=1', '-printtoconsole=0',
        ], { stdio: 'ignore' });
        this.child.on('exit', () => (this.over = true));
    }

    get cookie() {
        return join(this.home, 'regtest/.cookie');
    }

    /** What `--chain` takes. */
    get chain() {
        return `core=${this.url}?cookie=${this.cookie}`;
    }

    async #isReady() {
        let ready = false;
        await eventually('bitcoind answers', async () => {
            if (this.over) return true;
            ready = (await this.rpc('getmempoolinfo')).loaded;
            return ready;
        });
        return ready;
    }

    async rpc(method, ...params) {
        const login = Buffer.from(readFileSync(this.cookie, 'utf8')).toString('base64');
        const answer = await fetch(this.url, {
            method: 'POST',
            headers: { authorization: `Basic ${login}`, 'content-type': 'application/json' },
            body: JSON.stringify({ jsonrpc: '2.0', id: 0, method, params }),
        });
        const { result, error } = await answer.json();
        if (error) throw new Error(`${method}: ${error.message}`);
        return result;
    }

    async #prepare(payments) {
        const { descriptor } = await this.rpc('getdescriptorinfo', `wpkh(${KEY})`);
        [this.own] = await this.rpc('deriveaddresses', descriptor);
        this.coins = [];
        for (const hash of await this.rpc('generatetoaddress', payments, this.own)) {
            const { tx: [coinbase] } = await this.rpc('getblock', hash, 2);
            this.coins.push({ txid: coinbase.txid, vout: 0, value: coinbase.vout[0].value });
        }
        await this.mine(100);
    }

    /** Mines so many blocks; the first one contains the mempool. */
    async mine(blocks = 1) {
        // A script that is never spent, a different one each time.
        const burn = (this.blocks++).toString(16).padStart(8, '0');
        await this.rpc('generatetodescriptor', blocks, `raw(6a04${burn})`);
    }

    /** Pays so many satoshis: the transaction's identifier. It is in the mempool. */
    async pay(address, satoshis) {
        const coin = this.coins.shift();
        const fee = 2_000;
        const change = Math.round(coin.value * 1e8) - satoshis - fee;
        const bitcoin = (amount) => (amount / 1e8).toFixed(8);
        const raw = await this.rpc('createrawtransaction', [coin], [{ [address]: bitcoin(satoshis) }, { [this.own]: bitcoin(change) }]);
        const { hex, complete } = await this.rpc('signrawtransactionwithkey', raw, [KEY]);
        if (!complete) throw new Error('the payment cannot be signed');
        return this.rpc('sendrawtransaction', hex);
    }
}

/** The first line of `bitcoind -version`. */
export function version() {
    return execFileSync(BITCOIND, ['-version'], { encoding: 'utf8' }).split('\n')[0];
}
