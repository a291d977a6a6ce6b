// A participant in another language: seats of an area, held by the functions of fence.sql.
// DSN names its database; `node seats.js 8081` listens there, or at a free port that it prints.
'use strict';
const http = require('node:http');
const { Pool } = require('pg');

const pool = new Pool({ connectionString: process.env.DSN, max: 8 });
pool.on('error', () => {}); // A connection that dies while it idles is replaced.

// The three business functions: what they move, over the open transaction. None knows of repeats.
async function hold(tx, { area }) {
  const taken = await tx.query(
    'UPDATE seats SET free = free - 1, held = held + 1 WHERE area = $1 AND free > 0', [area]);
  return taken.rowCount === 1 ? { kind: 'seat_held', area } : null;
}
async function sell(tx, { area }) {
  await tx.query('UPDATE seats SET held = held - 1, sold = sold + 1 WHERE area = $1', [area]);
}
async function free(tx, { area }) {
  await tx.query('UPDATE seats SET held = held - 1, free = free + 1 WHERE area = $1', [area]);
}

const operations = {
  async try(tx, call) {
    const claim = await claimed(tx, 'SELECT * FROM fence_claim($1, $2, $3, $4, $5)',
      ['try', call.key, call.hash, call.day, call.at]);
    if (claim.verdict === 'repeat') return claim.answer;
    const held = await hold(tx, call.body);
    const answer = held ? { outcome: 'held', answer: held }
      : { outcome: 'refused', answer: { kind: 'sold_out', area: call.body.area } };
    return finished(tx, held ? 'hold' : 'refuse', call, answer);
  },
  async confirm(tx, call) {
    const claim = await claimed(tx, 'SELECT * FROM fence_claim($1, $2, NULL, $3, $4)',
      ['confirm', call.key, call.day, call.at]);
    if (claim.verdict === 'repeat') return claim.answer;
    await sell(tx, claim.answer.answer);
    return finished(tx, 'confirm', call, { outcome: 'confirmed' });
  },
  async cancel(tx, call) {
    const claim = await claimed(tx, 'SELECT * FROM fence_tombstone($1, $2, $3, $4)',
      [call.key, call.day, call.at, call.body.reason || '']);
    if (claim.verdict === 'repeat') return claim.answer;
    if (claim.answer) await free(tx, claim.answer.answer);
    return finished(tx, 'cancel', call, { outcome: 'cancelled', held: claim.answer !== null });
  },
};

class Refused extends Error {
  constructor(error, status = 409) { super(error); this.status = status; }
}
async function claimed(tx, statement, values) {
  const { rows: [claim] } = await tx.query(statement, values);
  if (!['proceed', 'repeat'].includes(claim.verdict)) throw new Refused(claim.verdict);
  return claim;
}
async function finished(tx, operation, call, answer) {
  await tx.query('SELECT fence_finish($1, $2, $3, $4)', [operation, call.key, answer, call.at]);
  return answer;
}

async function transaction(work) {
  const tx = await pool.connect();
  let broken;
  try {
    await tx.query('BEGIN ISOLATION LEVEL READ COMMITTED');
    const answer = await work(tx);
    await tx.query('COMMIT');
    return answer;
  } catch (error) {
    await tx.query('ROLLBACK').catch((lost) => { broken = lost; });
    throw error;
  } finally {
    tx.release(broken);
  }
}

function read(request, body) {
  const header = (name) => request.headers[`everycent-${name}`];
  const call = { key: header('key'), hash: header('request-hash') || null,
    day: header('opened-on'), at: header('at'), body: JSON.parse(body || '{}') };
  const named = `${header('xid')}/${header('branch')}` === call.key;
  const whole = named && call.day && call.at && (request.url !== '/try' || call.hash);
  if (!call.key || !whole) throw new Refused('InvalidRequest', 400);
  return call;
}

async function answer(request, body) {
  const path = decodeURIComponent(request.url.slice(1));
  if (request.method === 'POST' && Object.hasOwn(operations, path)) {
    const call = read(request, body);
    return transaction((tx) => operations[path](tx, call));
  }
  if (path === 'parts') {
    return (await pool.query('SELECT sum(free)::int AS free, sum(held)::int AS held,'
      + ' sum(sold)::int AS sold FROM seats')).rows[0];
  }
  const { rows: [row] } = await pool.query(
    'SELECT state, try_answer FROM fence WHERE key = $1', [path]);
  if (!row) return { state: 'absent' };
  const state = row.state === 'TRIED' ? 'held' : row.state.toLowerCase();
  return { state, answer: row.try_answer && row.try_answer.answer };
}

const server = http.createServer(async (request, response) => {
  let status = 200, said;
  try {
    let body = '';
    for await (const chunk of request) body += chunk;
    said = await answer(request, body);
  } catch (error) {
    // What is not refused by name is no "no": the caller sends it again under the same key.
    status = error.status || 500;
    said = { outcome: 'error', error: error.status ? error.message : 'Unknown', detail: String(error) };
  }
  response.writeHead(status, { 'Content-Type': 'application/json' });
  response.end(JSON.stringify(said));
});
server.listen(Number(process.argv[2] || 0), '127.0.0.1', () => console.log(server.address().port));
process.on('SIGTERM', () => { server.close(); pool.end().then(() => process.exit(0)); });
