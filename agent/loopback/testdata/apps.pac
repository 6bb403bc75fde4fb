// Portvakt: only the approved apps take this road.
var apps = {
  "10.99.0.16": 1,
  "10.99.0.17": 1,
  "10.99.0.50": 1,
  "[fd99::10]": 1,
  "[fd99::11]": 1,
  "crm.example.test": 1,
  "crm2.example.test": 1,
  "desk.example.test": 1,
  "fd99::10": 1,
  "fd99::11": 1,
  "odd.example.test": 1
};
function FindProxyForURL(url, host) {
  host = host.toLowerCase();
  if (host.charAt(host.length - 1) === ".") {
    host = host.substring(0, host.length - 1);
  }
  return Object.prototype.hasOwnProperty.call(apps, host) ? "PROXY 127.0.0.1:8118" : "DIRECT";
}
